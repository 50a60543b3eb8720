"""The root of a workspace: the folder of all artifacts, labels and runs, on this machine or on object storage.

In a local root, files are written and read in place. Files of a remote root are read through the cache; new ones are
written to the scratch folder beside the cache first, `<cache>/scratch/<root>/...`, and uploaded when complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import ConfigError, DataError
from pipeline.storage.atomic import PART_SUFFIX
from pipeline.storage.cache import Cache, CacheKey, cache_folder
from pipeline.storage.errors import explain_read_errors
from pipeline.storage.parquet import REPAIR
from pipeline.storage.path import StoragePath
from pipeline.storage.remote_file import RemoteFile, open_file

CACHE_GB = 20.0
TRANSFERS = 8
"""Files in transfer to or from storage at once."""
SHORT_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")
S = TypeVar("S")
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""The system's errors where a file system has no hard links, none to another one, or not so many."""
T = TypeVar("T")
PathOrFile = Path | RemoteFile


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A complete file of a root that never changes, with its size in bytes and its hash (hex)."""

    path: StoragePath
    size: int
    sha256: str
    cache: Cache

    def __str__(self) -> str:
        return str(self.path)

    def load(self, reader: Callable[[Path], T]) -> T:
        """Return `reader(path)` for the file itself, or for a complete local copy that exists while it reads.

        Errors name the file, not its copy. If the reader raises DataError, and the file has changed since it was made,
        the error says so.

        >>> table = file.load(pq.read_table)
        """
        if self.path.local:
            try:
                return reader(Path(self.path))
            except DataError:
                self.check()
                raise
        with self.cache.open(self._cache_key, self._fetch) as copy, path_in_errors(copy, str(self)):
            return reader(copy)

    def check(self) -> None:
        """Raise DataError if a local file's bytes do not match its hash, where that is known.

        Files elsewhere are checked when they are downloaded whole.
        """
        if self.sha256 and self.path.local and hash_if_exists(self.path) != self.sha256:
            raise DataError(f"{self}: its bytes changed since it was made. {REPAIR}")

    def scan(self, reader: Callable[[PathOrFile], T]) -> T:
        """Load as `load` does, but a remote file that is not in the cache as an open file, fetching what is read."""
        if self.path.local or self.cache.find(self._cache_key):
            return self.load(reader)
        with RemoteFile(self.path, self.size) as file:
            return reader(file)

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`; of a local file fewer at its end, where a remote one raises DataError.

        Of a remote file that is not in the cache, only these bytes are fetched.
        Raises OSError, or DataError for a remote file.
        """
        if self.path.local:
            return _pread(self.path, start, size)
        copy = self.cache.find(self._cache_key)
        if copy:
            with contextlib.suppress(FileNotFoundError):  # evicted just now
                return _pread(copy, start, size)
        return self.path.read(start, size)

    def download(self, share: float) -> None:
        """Fetch the whole file into the cache before it is read piece by piece, if it fits this share of the cache."""
        if self.path.local or self.size > share * self.cache.limit or self.cache.find(self._cache_key):
            return
        with self.cache.open(self._cache_key, self._fetch):
            pass

    @property
    def _cache_key(self) -> CacheKey:
        return CacheKey(self.sha256, self.size, self.path.suffix)

    def _fetch(self, copy: Path) -> None:
        self.path.download(copy)
        if copy.stat().st_size != self.size:
            raise DataError(f"{self}: {copy.stat().st_size} bytes, where its manifest says {self.size}.")
        if hash_file(copy) != self.sha256:
            raise DataError(f"{self}: its bytes changed since it was made.")


def local_file(path: Path) -> StoredFile:
    """Return a complete local file that belongs to no artifact yet."""
    return StoredFile(StoragePath.of(str(path)), path.stat().st_size, "", Cache(cache_folder(), 0))


def _check_folder(root: Path) -> None:
    """Raise ConfigError if there is a file at `root`, or where a folder that holds it should be."""
    for folder in (root, *root.parents):
        if folder.is_file():
            raise ConfigError(f"root {str(root)!r}: {folder} is a file; name a folder.")


@dataclasses.dataclass(frozen=True)
class Root:
    """A root, with its cache if it is remote. Methods take paths relative to it, such as `labels/x.parquet`.

    `entry` is a file's entry in a manifest: {size (bytes), sha256 (hex)}.
    """

    path: StoragePath
    cache: Cache

    @classmethod
    def of(cls, root: str | Path, cache_gb: float = CACHE_GB) -> Root:
        """Return the root at a path or URL, with `cache_gb` gigabytes of cache if it is remote."""
        if isinstance(root, Path) and SHORT_URL.match(str(root)):
            raise ConfigError(f"root {str(root)!r}: a URL loses a slash as a Path; give it as text.")
        if not str(root):
            raise ConfigError("root '': name a folder, as must-root.")
        opened = cls(StoragePath.of(str(root)), Cache(cache_folder(), int(cache_gb * 1e9)))
        if opened.local:
            _check_folder(Path(opened.path.path))
        return opened

    @property
    def local(self) -> bool:
        return self.path.local

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, path: str) -> StoragePath:
        """Return a file or folder of the root, taking every character of its name as it is."""
        return self.path.child(path)

    def file(self, path: str, entry: Mapping[str, Any]) -> StoredFile:
        """Return a complete file with a known entry."""
        return StoredFile(self / path, int(entry["size"]), str(entry["sha256"]), self.cache)

    def local_path(self, path: str = "") -> Path:
        """Return the local path at which `path` is written: in a local root itself, else in the scratch folder."""
        if self.local:
            return Path(self / path)
        return self.cache.folder / "scratch" / hashlib.sha256(str(self).encode()).hexdigest()[:16] / path

    def upload(self, *files: Path) -> None:
        """Upload files below `local_path`, in order, so that a later attempt on any machine can resume from them."""
        if not self.local:
            for file in files:
                (self / file.relative_to(self.local_path()).as_posix()).upload(file)

    def publish(self, path: str, entry: Mapping[str, Any]) -> None:
        """Upload the complete file at `local_path(path)` and move it to the cache."""
        if not self.local:
            (self / path).upload(self.local_path(path))
            self.add_to_cache(path, entry)

    def add_to_cache(self, path: str, entry: Mapping[str, Any]) -> None:
        """Move the file at `local_path(path)`, which the root holds by now, to the cache."""
        if not self.local:
            self.cache.add(self.file(path, entry)._cache_key, self.local_path(path))

    def download(self, path: str) -> Path:
        """Copy a file of a remote root to `local_path(path)`, and return that. Raises DataError if there is none."""
        if not self.local:
            self.local_path(path).parent.mkdir(parents=True, exist_ok=True)
            (self / path).download(self.local_path(path))
        return self.local_path(path)

    def prepare_folder(self, path: str, kept: Iterable[str]) -> Path:
        """Return the local folder in which to make `path`, with just the subfolders `kept` of an unfinished attempt."""
        folder = self.local_path(path)
        folder.mkdir(parents=True, exist_ok=True)
        remote = {} if self.local else (self / path).files()
        resumed = [name for name in remote if name.split("/")[0] in kept]
        # of subfolders that were not uploaded, those of this machine's own attempt count
        own = set(kept) - {name.split("/")[0] for name in resumed}
        for entry in folder.iterdir():
            if entry.is_dir() and entry.name not in own:
                shutil.rmtree(entry)
            elif entry.is_file():
                entry.unlink()
        for part in folder.rglob(f"*{PART_SUFFIX}"):
            part.unlink()  # its writer was killed
        in_parallel(lambda name: (self / f"{path}/{name}").remove(), remote.keys() - resumed)
        in_parallel(lambda name: self.download(f"{path}/{name}"), resumed)
        return folder

    def inherit(self, names: Mapping[str, str]) -> None:
        """Give files of the root, which never change, second names: {path: new path}."""
        if self.local:
            for source, target in names.items():
                link_or_copy(self.local_path(source), self.local_path(target))
            return
        in_parallel(lambda source: (self / source).copy(self / names[source]), names)

    def publish_all(self, path: str, files: Mapping[str, Mapping[str, Any]], inherited: Set[str] = frozenset()) -> None:
        """Publish all `files` (name: entry) of folder `path` except the `inherited`, which the root already holds."""
        in_parallel(lambda name: self.publish(f"{path}/{name}", files[name]), files.keys() - inherited)

    def cleanup(self, path: str, kept: Set[str], scratch: str) -> None:
        """Delete from the sealed folder `path` its subfolder `scratch` and what is not among the files `kept`."""
        shutil.rmtree(self.local_path(f"{path}/{scratch}" if self.local else path), ignore_errors=True)
        if not self.local:
            stale = (self / path).files().keys() - kept
            in_parallel(lambda name: (self / f"{path}/{name}").remove(), stale)

    @contextlib.contextmanager
    def local_copies(self, files: Mapping[str, StoredFile]) -> Iterator[Path]:
        """Yield a temporary local folder with copies of remote files under these names."""
        scratch = self.local_path()
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch, prefix=".read-") as name:
            folder = Path(name)
            in_parallel(lambda file: files[file].load(lambda copy: link_or_copy(copy, folder / file)), files)
            yield folder


@contextlib.contextmanager
def path_in_errors(copy: Path, path: str) -> Iterator[None]:
    """Replace a temporary copy by the `path` that it was copied from in the text of each DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(str(copy), path)) from error


def in_parallel(work: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Return `work(item)` for every item in order, TRANSFERS at once: storage is slow to answer, but answers many."""
    with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="transfer") as pool:
        return list(pool.map(work, items))  # after an error, `map` cancels the rest


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it on a file system without hard links. Raises FileExistsError if the target exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(source, target)


def hash_file(path: Path) -> str:
    """Return the sha256 (hex) of a local file, read in pieces. Raises DataError if it can't be read."""
    with explain_read_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_if_exists(path: StoragePath) -> str | None:
    """Return the sha256 (hex) of a file on any storage, read in pieces; None if it does not exist.

    Raises DataError if it can't be read, ConfigError if that is no fault of the file and may pass.
    """
    with contextlib.suppress(FileNotFoundError), explain_read_errors(path, missing=True), open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return None


def _pread(path: os.PathLike[str], start: int, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, start)
