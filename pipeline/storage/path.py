"""Where files are: on this machine or on any file system that fsspec knows, spoken to in one way."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import io
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Literal

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from pipeline.errors import ConfigError, DataError, MustError
from pipeline.storage.atomic import atomic_write, part_of, sync
from pipeline.storage.errors import CONTENDED, TAKEN, asking, code_of, opening, reading

URL = re.compile(r"[a-z][a-z0-9+.-]+(://|::)")
STATES = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
"""What tells one state of a remote file from another, by the names that storages give it; the first one counts."""
PARTS_AT_ONCE = {"s3": 1, "s3a": 1}
"""Parts of one file on their way at once, by protocol: each is 50 MiB of memory, and several files are on theirs."""


@dataclasses.dataclass(frozen=True)
class StoragePath:
    """A file or folder on this machine, or on any file system that fsspec knows. `path` is the system's own form."""

    system: AbstractFileSystem
    path: str
    facts: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False, repr=False)
    """What a listing told of a remote file."""

    @classmethod
    def of(cls, text: str) -> StoragePath:
        """The place that a recipe calls `text`: a URL, or a path, which may begin with `~` or be relative."""
        if not URL.match(text):
            return cls(LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
        protocol = get_protocol(text)
        options = {"max_concurrency": PARTS_AT_ONCE[protocol]} if protocol in PARTS_AT_ONCE else {}
        with opening(text):  # nothing is remembered of what was there: others write, too
            return cls(*fsspec.core.url_to_fs(text, use_listings_cache=False, **options))

    @property
    def local(self) -> bool:
        return isinstance(self.system, LocalFileSystem)

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> StoragePath:
        return StoragePath(self.system, self.path.rsplit("/", 1)[0])

    @property
    def suffix(self) -> str:
        """What follows the last dot, with the dot, in lower case."""
        return os.path.splitext(self.path)[1].lower()

    def __str__(self) -> str:
        return shown(self.path if self.local else self.system.unstrip_protocol(self.path))

    def __fspath__(self) -> str:
        """A place on this machine can be opened like any path."""
        if not self.local:
            raise TypeError(f"{self} is not on this machine")
        return self.path

    def __truediv__(self, name: str) -> StoragePath:
        """The place called `name` from here; an absolute path or URL stands for itself."""
        if URL.match(name) or os.path.isabs(name):
            return StoragePath.of(name)
        return StoragePath(self.system, posixpath.normpath(f"{self.path}/{name}"))

    def child(self, name: str) -> StoragePath:
        """The place right below this folder that is called `name`, whatever characters that has."""
        return StoragePath(self.system, f"{self.path.rstrip('/')}/{name}")

    def under(self, root: StoragePath) -> str:
        """The path from `root` to here, as text that can be stored."""
        return shown(self.path.removeprefix(root.path.rstrip("/") + "/").lstrip("/"))

    def _asking(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self.local else asking(str(self))

    def exists(self) -> bool:
        return bool(self.system.exists(self.path)) if self.local else self._kind() is not None

    def is_folder(self) -> bool:
        if self.local:
            return bool(self.system.isdir(self.path))
        kind = self._kind()
        with self._asking():  # a server of web pages calls everything a file
            return kind == "directory" or (kind is not None and bool(self.system.isdir(self.path)))

    def _kind(self) -> str | None:
        """What there is at a remote place, `file` or `directory`, None if nothing is. Unlike `exists` of the systems
        themselves, which takes a lack of credentials or of an answer for a bucket that is not there.
        """
        try:
            with self._asking():
                kind: str = self.system.info(self.path)["type"]
        except FileNotFoundError:
            return None
        return kind

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """The bytes of the file, or `size` of them from `start`. Raises DataError if it can't be read, ConfigError if
        that is no fault of the file's and may pass.
        """
        if size == 0:
            return b""  # an empty range would be taken for the whole file
        with reading(self):
            data = self._bytes(start, size)
        if size is not None and len(data) != size:
            raise DataError(f"{self}: ends {size - len(data)} bytes before the end of an image in it")
        return data

    def peek(self) -> bytes | None:
        """The bytes of the file, None if there is none: one request, where `exists` and `read` are two."""
        try:
            return self._bytes(0, None)
        except FileNotFoundError:
            return None

    def _bytes(self, start: int, size: int | None) -> bytes:
        # always by range: without one, s3fs asks for the size first
        end = None if size is None else start + size
        try:
            with self._asking():
                data: bytes = self.system.cat_file(self.path, start=start, end=end)
        except DataError:
            if start or size is not None:
                raise
            with self._asking():  # an empty file has no first byte to begin a range with
                data = self.system.cat_file(self.path)
        return data

    def write(self, data: bytes) -> None:
        """Make the file, whole or not at all, in the place of one that is there."""
        if not self.local:
            with self._asking():
                self.system.pipe_file(self.path, data)
            return
        with atomic_write(self._made_way()) as part:
            part.write_bytes(data)

    def create(self, data: bytes) -> bool:
        """Make the file, whole, unless there is one; whether this call made it. Of many at once one does, on a file
        system that is shared and on object storage as well.
        """
        try:
            return self._create_here(data) if self.local else self._create_elsewhere(data)
        except FileExistsError:
            return False

    def _create_here(self, data: bytes) -> bool:
        part = part_of(self._made_way())
        try:
            part.write_bytes(data)
            sync(part)
            os.link(part, self.path)
        finally:
            part.unlink(missing_ok=True)
        return True

    def _made_way(self) -> Path:
        """The path of a local file, in a folder that there is now."""
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _create_elsewhere(self, data: bytes) -> bool:
        while True:
            try:
                with self._asking():
                    self.system.pipe_file(self.path, data, mode="create")
                return True
            except MustError as error:
                code = code_of(error)
                if code == TAKEN:
                    return False
                if code != CONTENDED:
                    raise

    def append(self, data: bytes) -> None:
        """Add to the end of the file, which is made if there is none. Of a remote file, which is written anew each
        time, for those that are small and have one writer.
        """
        if not self.local:
            return self.write((self.peek() or b"") + data)
        with open(self._made_way(), "ab") as file:
            file.write(data)
        return None

    def upload(self, file: Path) -> None:
        """Make this remote file out of one of this machine: whole or not at all."""
        with self._asking():
            self.system.put_file(str(file), self.path)

    def download(self, file: Path) -> None:
        """Copy this remote file to this machine. Raises DataError if it is not there."""
        try:
            with self._asking():
                self.system.get_file(self.path, str(file))
        except FileNotFoundError as error:
            raise DataError(f"{self}: there is no such file") from error

    def copy(self, target: StoragePath) -> None:
        """Put a copy of the file at a place of the same file system, by that system itself."""
        with self._asking():
            self.system.cp_file(self.path, target.path)

    def remove(self) -> None:
        """Take the file away, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._asking():
            self.system.rm_file(self.path)

    def files(self) -> dict[str, int]:
        """Every file below this folder, hidden ones as well, by its path from here: its size in bytes."""
        if self.local:
            return dict(_sizes(self.path, ""))
        return {name: int(facts["size"]) for name, facts in self._listing().items()}

    def _listing(self) -> dict[str, Mapping[str, Any]]:
        """What there is to know of every file below a remote folder, by its path from here: a request per 1000.

        Of a folder that is empty some storages list the folder itself, or a file of its name; and tools that know
        folders leave files for them, whose names end in a slash.
        """
        try:
            with self._asking():
                found = self.system.find(self.path, detail=True)
        except FileNotFoundError:
            return {}
        folder = self.path.rstrip("/")
        below = {
            path: facts
            for path, facts in found.items()
            if facts["type"] == "file" and path.startswith(folder and f"{folder}/") and not path.endswith("/")
        }
        return {StoragePath(self.system, path).under(self): facts for path, facts in below.items()}

    def folders(self) -> list[StoragePath]:
        """The folders right below this one, hidden ones as well; none if there is no such folder."""
        try:
            with self._asking():
                entries = self.system.ls(self.path, detail=True)
        except FileNotFoundError:
            return []
        return [StoragePath(self.system, e["name"].rstrip("/")) for e in entries if e["type"] == "directory"]

    def written(self) -> float | None:
        """When the file was written (Unix time), None if there is none."""
        try:
            with self._asking():
                moment: datetime.datetime = self.system.modified(self.path)
        except FileNotFoundError:
            return None
        return moment.timestamp()

    def stamp(self) -> tuple[int, int]:
        """(size in bytes, mtime in ns); for a remote file (size, hash of its state); (-1, 0) for a link to nothing.
        Raises DataError and ConfigError as `read` does.
        """
        if not self.local:
            with self._asking():
                facts = self.facts or self.system.info(self.path)
                state = next((str(facts[name]) for name in STATES if facts.get(name)), None)
                state = state or self.system.ukey(self.path)
            digest = hashlib.sha256(state.encode()).digest()
            return int(facts.get("size") or 0), int.from_bytes(digest[:7], "big")
        with reading(self):
            try:
                info = os.stat(self.path)
            except FileNotFoundError:
                return -1, 0
        return info.st_size, info.st_mtime_ns


def _sizes(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    """The files of a folder of this machine, and of those below: a hundred thousand in a fraction of a second."""
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if entry.is_dir():
                yield from _sizes(entry.path, f"{prefix}{entry.name}/")
                continue
            with contextlib.suppress(FileNotFoundError):  # one that was renamed meanwhile
                yield prefix + entry.name, entry.stat().st_size


def shown(name: str) -> str:
    """A file's name as text that can be stored: bytes that are no UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def existing(place: StoragePath, option: str, kind: Literal["file", "folder", "path"]) -> StoragePath:
    """`place`, if there is a file, a folder, or either (a path) there; else ConfigError naming the recipe's option."""
    if not place.exists():
        raise ConfigError(f"{option}: there is no {kind} {place}")
    if kind != "path" and place.is_folder() != (kind == "folder"):
        raise ConfigError(f"{option}: {place} is not a {kind}")
    return place


def subfolders(folder: StoragePath) -> list[StoragePath]:
    """The visible folders right below `folder`, links to folders among them, sorted by name."""
    if folder.local:
        names = [entry.name for entry in _scan(folder) if _is_folder(entry)]
    else:
        names = sorted(found.name for found in folder.folders())
    return [folder.child(name) for name in names if not name.startswith(".")]


def walk(root: StoragePath) -> Iterator[StoragePath]:
    """All files below the folder `root`, folder by folder in order of names.

    Names that begin with a dot are passed over. Links are followed, except to a folder that they lie in themselves.
    A link to nothing is given like a file, so that reading it fails with a reason.
    """
    if root.local:
        yield from _walk_local(root, frozenset())
        return
    for name, facts in sorted(root._listing().items(), key=lambda item: item[0].split("/")):
        if not any(part.startswith(".") for part in name.split("/")):
            yield dataclasses.replace(root.child(name), facts=facts)


def _walk_local(folder: StoragePath, above: frozenset[tuple[int, int]]) -> Iterator[StoragePath]:
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


def _scan(folder: StoragePath) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder.path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: can't be listed ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `is_dir` raises on a link to itself where `isdir` says no; but for plain entries it asks the disk nothing
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


READ_AHEAD = 8 << 20
"""Bytes that are asked for at a time of a file that is read from front to back."""


def opened(place: StoragePath) -> IO[bytes]:
    """A file anywhere, open for reading. Raises OSError, as FileNotFoundError; of one that is elsewhere reading raises
    what `StoragePath.read` does.
    """
    if place.local:
        return open(place, "rb")
    return io.BufferedReader(RangedFile(place, place.stamp()[0]), READ_AHEAD)


class RangedFile(io.RawIOBase):
    """A file elsewhere, of `size` bytes, open for reading. Nothing is read ahead."""

    def __init__(self, place: StoragePath, size: int) -> None:
        super().__init__()
        self.place, self.size, self._position = place, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self.size - self._position))
        if size:
            buffer[:size] = self.place.read(self._position, size)
        self._position += size
        return size
