"""Where files are: on this machine or on any file system that fsspec knows, spoken to in one way."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import posixpath
import re
import uuid
from collections.abc import Iterator
from typing import IO, Literal

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, DataError

URL = re.compile(r"[a-z][a-z0-9+.-]+(://|::)")


@dataclasses.dataclass(frozen=True)
class Place:
    """A file or folder on this machine, or on any file system that fsspec knows. `path` is the system's own form."""

    system: AbstractFileSystem
    path: str

    @classmethod
    def of(cls, text: str) -> Place:
        """The place that a recipe calls `text`: a URL, or a path, which may begin with `~` or be relative."""
        if not URL.match(text):
            return cls(LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
        try:
            return cls(*fsspec.core.url_to_fs(text))
        except (ValueError, ImportError) as error:
            raise ConfigError(f"path {text!r} can't be opened: {error}") from error

    @property
    def local(self) -> bool:
        return isinstance(self.system, LocalFileSystem)

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Place:
        return Place(self.system, self.path.rsplit("/", 1)[0])

    @property
    def suffix(self) -> str:
        """What follows the last dot, with the dot, in lower case."""
        return os.path.splitext(self.path)[1].lower()

    def __str__(self) -> str:
        return shown(self.path if self.local else self.system.unstrip_protocol(self.path))

    def __truediv__(self, name: str) -> Place:
        """The place called `name` from here; an absolute path or URL stands for itself."""
        if URL.match(name) or os.path.isabs(name):
            return Place.of(name)
        return Place(self.system, posixpath.normpath(f"{self.path}/{name}"))

    def child(self, name: str) -> Place:
        """The place right below this folder that is called `name`, whatever characters that has."""
        return Place(self.system, f"{self.path.rstrip('/')}/{name}")

    def under(self, root: Place) -> str:
        """The path from `root` to here, as text that can be stored."""
        return shown(self.path.removeprefix(root.path.rstrip("/") + "/").lstrip("/"))

    def exists(self) -> bool:
        return bool(self.system.exists(self.path))

    def is_folder(self) -> bool:
        return bool(self.system.isdir(self.path))

    def open(self) -> IO[bytes]:
        return self.system.open(self.path, "rb")

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """The bytes of the file, or `size` of them from `start`. Raises DataError if it can't be read."""
        try:
            data: bytes = self.system.cat_file(self.path, start, None if size is None else start + size)
        except FileNotFoundError as error:
            raise DataError(f"{self}: there is no such file") from error
        except OSError as error:
            raise DataError(f"{self}: can't be read ({error.strerror or error})") from error
        if size is not None and len(data) != size:
            raise DataError(f"{self}: ends {size - len(data)} bytes before the end of an image in it")
        return data

    def write(self, data: bytes) -> None:
        """Make the file, whole or not at all, in the place of one that is there."""
        if not self.local:
            self.system.pipe_file(self.path, data)
            return
        with _beside(self.path, data) as part:
            os.replace(part, self.path)

    def create(self, data: bytes) -> bool:
        """Make the file, whole, unless there is one; whether this call made it. Of many at once one does, on a file
        system that is shared and on object storage as well.
        """
        try:
            if not self.local:
                self.system.pipe_file(self.path, data, mode="create")
                return True
            with _beside(self.path, data) as part:
                os.link(part, self.path)
        except FileExistsError:
            return False
        return True

    def remove(self) -> None:
        """Take the file away, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.system.rm_file(self.path)

    def files(self) -> dict[str, int]:
        """Every file below this folder, hidden ones as well, by its path from here: its size in bytes."""
        try:
            found = self.system.find(self.path, detail=True)
        except FileNotFoundError:
            return {}
        return {Place(self.system, path).under(self): int(facts["size"]) for path, facts in found.items()}

    def stamp(self) -> tuple[int, int]:
        """(size in bytes, mtime in ns); for a remote file (size, hash of its state); (-1, 0) for a link to nothing."""
        if not self.local:
            state = hashlib.sha256(self.system.ukey(self.path).encode()).digest()
            return int(self.system.size(self.path) or 0), int.from_bytes(state[:7], "big")
        try:
            info = os.stat(self.path)
        except FileNotFoundError:
            return -1, 0
        return info.st_size, info.st_mtime_ns


@contextlib.contextmanager
def _beside(path: str, data: bytes) -> Iterator[str]:
    """A hidden file with `data`, safe on the disk, in the folder of `path`, which is made; gone afterwards."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    part = f"{folder}/.{name}.{uuid.uuid4().hex[:12]}.part"
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield part
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def shown(name: str) -> str:
    """A file's name as text that can be stored: bytes that are no UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def existing(place: Place, option: str, kind: Literal["file", "folder", "path"]) -> Place:
    """`place`, if there is a file, a folder, or either (a path) there; else ConfigError naming the recipe's option."""
    if not place.exists():
        raise ConfigError(f"{option}: there is no {kind} {place}")
    if kind != "path" and place.is_folder() != (kind == "folder"):
        raise ConfigError(f"{option}: {place} is not a {kind}")
    return place


def subfolders(folder: Place) -> list[Place]:
    """The visible folders right below `folder`, links to folders among them, sorted by name."""
    if folder.local:
        names = [entry.name for entry in _scan(folder) if _is_folder(entry)]
    else:
        entries = folder.system.ls(folder.path, detail=True)
        names = sorted(Place(folder.system, e["name"].rstrip("/")).name for e in entries if e["type"] == "directory")
    return [folder.child(name) for name in names if not name.startswith(".")]


def walk(root: Place) -> Iterator[Place]:
    """All files below the folder `root`, folder by folder in order of names.

    Names that begin with a dot are passed over. Links are followed, except to a folder that they lie in themselves.
    A link to nothing is given like a file, so that reading it fails with a reason.
    """
    if root.local:
        yield from _walk_local(root, frozenset())
        return
    for path in sorted(root.system.find(root.path)):
        place = Place(root.system, path)
        if not any(part.startswith(".") for part in place.under(root).split("/")):
            yield place


def _walk_local(folder: Place, above: frozenset[tuple[int, int]]) -> Iterator[Place]:
    info = os.stat(folder.path)
    here = (info.st_dev, info.st_ino)
    if here in above:
        return
    for entry in _scan(folder):
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk_local(folder.child(entry.name), above | {here})
        elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
            yield folder.child(entry.name)


def _scan(folder: Place) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder.path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: can't be listed ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `is_dir` raises on a link to itself where `isdir` says no; but for plain entries it asks the disk nothing
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
