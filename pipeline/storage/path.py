"""Paths of files and folders on this machine or on any file system that fsspec knows, with the same methods for all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, TypeVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from pipeline.errors import ConfigError, DataError, MustError, mask_credentials
from pipeline.storage.atomic import atomic_write, fsync, name_in_errors, temporary_path
from pipeline.storage.errors import (
    ALREADY_EXISTS,
    BEING_CREATED,
    explain_open_errors,
    explain_read_errors,
    explain_remote_errors,
    s3_error_code,
)

MOST_LINKS = 3
"""Links to folders that lie in one another: with more, folders that link to each other are walked without end."""
LEADS_NOWHERE = (errno.ENOENT, errno.ELOOP)
"""The system's errors for links to nothing and to themselves."""
URL = re.compile(r"[a-z][a-z0-9+.-]+(://|::)")
STATE_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
"""Keys under which storages tell one state of a file from another; the first one present counts."""
S3_OPTIONS = {"max_concurrency": 1}
"""One part of a file in transfer at once: each takes 50 MiB of memory, and files go in parallel."""
SYSTEM_FOLDERS = ("__MACOSX", "lost+found", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
"""Folders that archives, file systems and network storages have beside a user's own: copies, previews, remains."""
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class StoragePath:
    """A file or folder on this machine, or on any file system that fsspec knows.

    >>> folder = StoragePath.of("s3://bucket/images")  # or a local path, "~/images"
    >>> (folder / "train/a.jpg").read()
    """

    fs: AbstractFileSystem
    path: str
    """In the form of `fs`: without the protocol."""
    info: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False, repr=False)
    """For a remote file from a listing, what the listing said about it."""

    @classmethod
    def of(cls, text: str) -> StoragePath:
        """Return the path for a URL or a local path, which may start with `~` or be relative.

        Raises ConfigError for text that no file system takes, or if the URL's can't be opened.
        """
        try:
            os.fsencode(text)
        except UnicodeEncodeError as error:
            raise ConfigError(f"path {text!r} can't be the name of a file: {error.reason}.") from error
        if not URL.match(text):
            return cls(LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
        options = S3_OPTIONS if get_protocol(text) in ("s3", "s3a") else {}
        with explain_open_errors(text):  # listings are not cached, as other processes write as well
            return cls(*fsspec.core.url_to_fs(text, use_listings_cache=False, **options))

    @property
    def local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> StoragePath:
        return StoragePath(self.fs, self.path.rsplit("/", 1)[0])

    @property
    def suffix(self) -> str:
        """The last dot and what follows it, in lower case."""
        return os.path.splitext(self.path)[1].lower()

    def __str__(self) -> str:
        return printable(self.path if self.local else self.fs.unstrip_protocol(self.path))

    def __fspath__(self) -> str:
        """Return the path for `open` and `Path`, which work with a local file only."""
        if not self.local:
            raise TypeError(f"{self} is not on this machine")
        return self.path

    def __truediv__(self, name: str) -> StoragePath:
        """Return the path of `name` relative to this one; an absolute path or URL replaces this one."""
        if URL.match(name) or os.path.isabs(name):
            return StoragePath.of(name)
        return StoragePath(self.fs, posixpath.normpath(f"{self.path}/{name}"))

    def child(self, name: str) -> StoragePath:
        """Return the path of the entry `name` of this folder, taking every character of the name as it is."""
        return StoragePath(self.fs, f"{self.path.rstrip('/')}/{name}")

    def relative_to(self, root: StoragePath) -> str:
        """Return the path from `root` to here as printable text; the whole URL if it is of another file system."""
        prefix = root.path.rstrip("/") + "/"
        if self.fs != root.fs:
            return mask_credentials(str(self))
        if self.path.startswith(prefix) or prefix == "/":
            return printable(self.path.removeprefix(prefix).lstrip("/"))
        return printable(posixpath.relpath(self.path, root.path))

    def _explain_errors(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self.local else explain_remote_errors(str(self))

    def exists(self) -> bool:
        return bool(self.fs.exists(self.path)) if self.local else self._kind() is not None

    def is_folder(self) -> bool:
        if self.local:
            return bool(self.fs.isdir(self.path))
        kind = self._kind()
        with self._explain_errors():  # a web server calls everything a file
            return kind == "directory" or (kind is not None and bool(self.fs.isdir(self.path)))

    def _kind(self) -> str | None:
        # not fsspec's own `exists`, which takes missing credentials or no answer for a missing bucket
        info = self._if_exists(self.fs.info)
        return info and info["type"]

    def _if_exists(self, ask: Callable[..., T], **options: Any) -> T | None:
        """Return what a method of the file system returns for this path, None if there is no such file or folder."""
        try:
            with self._explain_errors():
                return ask(self.path, **options)
        except FileNotFoundError:
            return None

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """Return the bytes of the file, or `size` of them from `start`.

        Raises DataError if they can't be read, ConfigError if that is no fault of the file and may pass.
        """
        if size == 0:
            return b""  # storages take an empty range for the whole file
        with explain_read_errors(self):
            if self.local and not stat.S_ISREG(os.stat(self.path).st_mode):  # a pipe waits, a device may never end
                raise DataError(f"{self}: is no file, but a folder, pipe or device")
            data = self._cat(start, size)
        if size is not None and len(data) != size:
            raise DataError(f"{self}: ends {size - len(data)} bytes before the end of what is to be read from it")
        return data

    def read_if_exists(self) -> bytes | None:
        """Return the bytes of the file, None if there is none. One request, where `exists` and `read` are two.

        Raises as `read` does.
        """
        with contextlib.suppress(FileNotFoundError), explain_read_errors(self, missing=True):
            return self._cat(0, None)
        return None

    def _cat(self, start: int, size: int | None) -> bytes:
        # always a range: without one, s3fs asks for the size first
        end = None if size is None else start + size
        try:
            with self._explain_errors():
                return self.fs.cat_file(self.path, start=start, end=end)
        except DataError:
            if start or size is not None:
                raise
            with self._explain_errors():  # an empty file has no range that starts at 0
                return self.fs.cat_file(self.path)

    def write(self, data: bytes) -> None:
        """Write the file atomically, replacing an existing one."""
        if self.local:
            with atomic_write(self._with_parents()) as temporary:
                temporary.write_bytes(data)
        else:
            with self._explain_errors():
                self.fs.pipe_file(self.path, data)

    def create(self, data: bytes) -> bool:
        """Write the file atomically unless it exists, and return True if so.

        Of concurrent callers exactly one gets True, on shared file systems and on object storage alike.
        """
        try:
            return self._create_local(data) if self.local else self._create_remote(data)
        except FileExistsError:
            return False

    def _create_local(self, data: bytes) -> bool:
        temporary = temporary_path(self._with_parents())
        try:
            temporary.write_bytes(data)
            fsync(temporary)
            os.link(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _with_parents(self) -> Path:
        """Return the path of a local file after making its folder."""
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _create_remote(self, data: bytes) -> bool:
        while True:
            try:
                with self._explain_errors():
                    self.fs.pipe_file(self.path, data, mode="create")
                return True
            except MustError as error:
                code = s3_error_code(error)
                if code == ALREADY_EXISTS:
                    return False
                if code != BEING_CREATED:
                    raise

    def append(self, data: bytes) -> None:
        """Append to the file, creating it if needed. A remote one is rewritten: keep it small, with one writer."""
        if self.local:
            path = self._with_parents()
            with name_in_errors(path), open(path, "ab") as file:
                file.write(data)
        else:
            self.write((self.read_if_exists() or b"") + data)

    def upload(self, file: Path) -> None:
        """Write this remote file atomically from a local one."""
        with self._explain_errors():
            self.fs.put_file(str(file), self.path)

    def download(self, file: Path) -> None:
        """Copy this remote file to this machine. Raises DataError if it does not exist."""
        try:
            with self._explain_errors():
                self.fs.get_file(self.path, str(file))
        except FileNotFoundError as error:
            raise DataError(f"{self}: there is no such file") from error

    def copy(self, target: StoragePath) -> None:
        """Copy the file within its file system, on the server."""
        with self._explain_errors():
            self.fs.cp_file(self.path, target.path)

    def remove(self) -> None:
        """Delete the file if it exists."""
        with contextlib.suppress(FileNotFoundError), self._explain_errors():
            self.fs.rm_file(self.path)

    def files(self) -> dict[str, int]:
        """Return the size in bytes of every file below this folder, hidden ones included, by its path from here."""
        if self.local:
            return dict(_sizes(self.path, ""))
        return {name: int(info["size"]) for name, info in self._listing().items()}

    def _listing(self) -> dict[str, Mapping[str, Any]]:
        """Return fsspec's info on every file below a remote folder, by its path from here: one request per 1000.

        For an empty folder some storages list the folder itself or a file of its name, and tools that know folders
        leave marker files whose names end in a slash: these are left out.
        """
        infos: dict[str, Any] = self._if_exists(self.fs.find, detail=True) or {}
        folder = self.path.rstrip("/")
        return {
            StoragePath(self.fs, path).relative_to(self): info
            for path, info in infos.items()
            if info["type"] == "file" and path.startswith(folder and f"{folder}/") and not path.endswith("/")
        }

    def folders(self) -> list[StoragePath]:
        """Return the folders right below this one, hidden ones included; none if this one does not exist."""
        if self.local:
            return [self.child(entry.name) for entry in _scan(self.path) if _is_folder(entry)]
        entries = self._if_exists(self.fs.ls, detail=True) or []
        return [StoragePath(self.fs, e["name"].rstrip("/")) for e in entries if e["type"] == "directory"]

    def modified(self) -> float | None:
        """Return the Unix time at which the file was last written, None if it does not exist."""
        moment = self._if_exists(self.fs.modified)
        return moment and moment.timestamp()

    def stamp(self) -> tuple[int, int]:
        """Return (size in bytes, mtime in ns), for a remote file (size, hash of its state), if there is none (-1, 0).

        Raises DataError and ConfigError as `read` does.
        """
        if not self.local:
            info = self.info or self._if_exists(self.fs.info)
            if info is None:
                return -1, 0
            with self._explain_errors():
                state = next((str(info[key]) for key in STATE_KEYS if info.get(key)), None)
                state = state or self.fs.ukey(self.path)
            digest = hashlib.sha256(state.encode()).digest()
            return int(info.get("size") or 0), int.from_bytes(digest[:7], "big")
        with explain_read_errors(self):
            try:
                status = os.stat(self.path)
            except OSError as error:
                if error.errno not in LEADS_NOWHERE:
                    raise
                return -1, 0
        return status.st_size, status.st_mtime_ns


def _sizes(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield the path and size of all files below a local folder: a hundred thousand take a fraction of a second."""
    for entry in _scan(folder):
        if _is_folder(entry):
            yield from _sizes(entry.path, f"{prefix}{entry.name}/")
            continue
        with contextlib.suppress(OSError):  # renamed meanwhile, or a link that leads nowhere
            yield prefix + entry.name, entry.stat().st_size


def printable(name: str) -> str:
    """Return a file name as text that can be stored: bytes that are not UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def require_exists(path: StoragePath, option: str, kind: Literal["file", "folder", "path"]) -> StoragePath:
    """Return `path` if it is a file, a folder, or either (a path). Raises ConfigError naming the recipe's option."""
    if not path.exists():
        raise ConfigError(f"{option}: there is no {kind} {path}")
    if kind != "path" and path.is_folder() != (kind == "folder"):
        raise ConfigError(f"{option}: {path} is not a {kind}")
    return path


def is_hidden(name: str) -> bool:
    """Return True for a name that begins with a dot, and for those that systems give to folders of their own."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def subfolders(folder: StoragePath) -> list[StoragePath]:
    """Return the folders right below `folder` that are not hidden, links to folders included, sorted by name."""
    return sorted((each for each in folder.folders() if not is_hidden(each.name)), key=lambda each: each.name)


def walk(root: StoragePath) -> Iterator[StoragePath]:
    """Yield all files below the folder `root`, folder by folder, sorted by name.

    Hidden files and folders are skipped. Links are followed, except to a folder that contains them. A broken link is
    yielded like a file, so that reading it fails with a reason.
    """
    if root.local:
        yield from _walk_local(root, frozenset())
        return
    for name, info in sorted(root._listing().items(), key=lambda item: item[0].split("/")):
        if not any(map(is_hidden, name.split("/"))):
            yield dataclasses.replace(root.child(name), info=info)


def _walk_local(folder: StoragePath, parents: frozenset[tuple[int, int]], links: int = 0) -> Iterator[StoragePath]:
    status = os.stat(folder.path)
    inode = (status.st_dev, status.st_ino)
    if inode in parents:
        return
    if links > MOST_LINKS:
        raise DataError(f"{folder}: is reached by {links} links to folders in one another; {MOST_LINKS} are followed")
    for entry in _scan(folder.path):
        if is_hidden(entry.name):
            continue
        if _is_folder(entry):
            yield from _walk_local(folder.child(entry.name), parents | {inode}, links + entry.is_symlink())
        elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
            yield folder.child(entry.name)


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """Return the entries of a local folder, sorted by name; none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{folder}: can't be listed ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `entry.is_dir` raises on a link to itself where `isdir` says no; but for plain entries it needs no system call
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
