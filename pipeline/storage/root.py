"""The root of a workspace: where artifacts, labels and runs are kept, on this machine or on object storage.

On this machine, files are made and read where they lie. Of a root elsewhere, what is read comes through the cache, and
what is made is written beside the cache first, `<cache>/scratch/<root>/...`, and uploaded when it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from pipeline.storage.atomic import PART
from pipeline.storage.cache import Cache, CacheKey, cache_folder
from pipeline.storage.path import RangedFile, StoragePath, opened

CACHE_GB = 20.0
TRANSFERS = 8
"""Files on their way to or from storage at once."""
SHORT_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")
S = TypeVar("S")
T = TypeVar("T")
Source = Path | RangedFile


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file of a root that is whole and never changes, with its size in bytes and hash (hex)."""

    place: StoragePath
    size: int
    sha256: str
    cache: Cache

    def __str__(self) -> str:
        return str(self.place)

    def load(self, reader: Callable[[Path], T]) -> T:
        """What `reader` makes of the file: it gets the file itself, or a whole copy that is there while it reads.

        Errors name the file, not its copy.
        """
        if self.place.local:
            return reader(Path(self.place))
        with self.cache.hold(self._entry, self._fetch) as copy, path_in_errors(copy, str(self)):
            return reader(copy)

    def scan(self, reader: Callable[[Source], T]) -> T:
        """Like `load`, for those who read little of a large file: of one that is elsewhere and not in the cache, they
        get an open file that fetches what is read of it.
        """
        if self.place.local or self.cache.find(self._entry):
            return self.load(reader)
        with RangedFile(self.place, self.size) as file:
            return reader(file)

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`, fewer where the file ends. Raises OSError, or DataError if it is elsewhere.

        Of a file that is elsewhere and not in the cache they alone are fetched; see `download`.
        """
        if self.place.local:
            return _bytes_of(self.place, start, size)
        copy = self.cache.find(self._entry)
        if copy:
            try:
                return _bytes_of(copy, start, size)
            except FileNotFoundError:  # taken out just now
                pass
        return self.place.read(start, size)

    def download(self, share: float) -> None:
        """For those who will read all of it piece by piece: have the whole file in the cache, if it takes up no more
        than this share of the cache.
        """
        if self.place.local or self.size > share * self.cache.limit or self.cache.find(self._entry):
            return
        with self.cache.hold(self._entry, self._fetch):
            pass

    @property
    def _entry(self) -> CacheKey:
        return CacheKey(self.sha256, self.size, self.place.suffix)

    def _fetch(self, copy: Path) -> None:
        self.place.download(copy)
        if copy.stat().st_size != self.size:
            raise DataError(f"{self}: {copy.stat().st_size} bytes, where its manifest says {self.size}.")
        if hash_file(copy) != self.sha256:
            raise DataError(f"{self}: its bytes changed since it was made.")


def local_file(path: Path) -> StoredFile:
    """A whole file of this machine that is part of no artifact yet."""
    return StoredFile(StoragePath.of(str(path)), path.stat().st_size, "", Cache(cache_folder(), 0))


@dataclasses.dataclass(frozen=True)
class Root:
    """A root, and the cache before it if it is elsewhere. Paths are relative to it, as `labels/x.parquet`."""

    place: StoragePath
    cache: Cache

    @classmethod
    def of(cls, root: str | Path, cache_gb: float = CACHE_GB) -> Root:
        """The root at a path or URL, with `cache_gb` gigabytes of cache if it is elsewhere."""
        if isinstance(root, Path) and SHORT_URL.match(str(root)):
            raise ConfigError(f"root {str(root)!r}: a URL loses a slash as a Path; give it as text.")
        return cls(StoragePath.of(str(root)), Cache(cache_folder(), int(cache_gb * 1e9)))

    @property
    def local(self) -> bool:
        return self.place.local

    def __str__(self) -> str:
        return str(self.place)

    def __truediv__(self, path: str) -> StoragePath:
        """The place of a file or folder of the root, whatever characters its name has."""
        return self.place.child(path)

    def file(self, path: str, facts: Mapping[str, Any]) -> StoredFile:
        """A file that is whole and never changes, of which {size, sha256} are known."""
        return StoredFile(self / path, int(facts["size"]), str(facts["sha256"]), self.cache)

    def local_path(self, path: str = "") -> Path:
        """Where this machine writes what is to be at `path`: there itself, or in the scratch folder."""
        if self.local:
            return Path(self / path)
        return self.cache.folder / "scratch" / hashlib.sha256(str(self).encode()).hexdigest()[:16] / path

    def keep(self, *files: Path) -> None:
        """Files under `local_path` that a later attempt, maybe on another machine, goes on from: upload them, in order."""
        if not self.local:
            for file in files:
                (self / self._path(file)).upload(file)

    def publish(self, path: str, facts: Mapping[str, Any]) -> None:
        """A file at `local_path(path)` is whole, and as `facts` say: upload it; from now on it is in the cache."""
        if not self.local:
            (self / path).upload(self.local_path(path))
            self.add_to_cache(path, facts)

    def add_to_cache(self, path: str, facts: Mapping[str, Any]) -> None:
        """A file at `local_path(path)` is also in the root, and as `facts` say: from now on it is in the cache."""
        if not self.local:
            file = self.file(path, facts)
            self.cache.take(CacheKey(file.sha256, file.size, file.place.suffix), self.local_path(path))

    def download(self, path: str) -> Path:
        """A file of the root, whatever is in it, at `local_path(path)`. Raises DataError if it is not in the root."""
        if not self.local:
            self.local_path(path).parent.mkdir(parents=True, exist_ok=True)
            (self / path).download(self.local_path(path))
        return self.local_path(path)

    def begin(self, path: str, kept: Iterable[str]) -> Path:
        """The folder to make `path` in. Of an unfinished attempt it holds the subfolders `kept`; all else is gone."""
        folder = self.local_path(path)
        folder.mkdir(parents=True, exist_ok=True)
        there = {} if self.local else (self / path).files()
        brought = [name for name in there if name.split("/")[0] in kept]
        # of what was not uploaded, this machine's own attempt counts
        _clear(folder, set(kept) - {name.split("/")[0] for name in brought})
        for part in folder.rglob(f"*{PART}"):
            part.unlink()  # its writer was killed
        in_parallel(lambda name: (self / f"{path}/{name}").remove(), there.keys() - brought)
        in_parallel(lambda name: self.download(f"{path}/{name}"), brought)
        return folder

    def inherit(self, names: Mapping[str, str]) -> None:
        """Give files of the root, which never change, second names: {path: another path}."""
        if self.local:
            for source, target in names.items():
                link(self.local_path(source), self.local_path(target))
            return
        in_parallel(lambda source: (self / source).copy(self / names[source]), names)

    def publish_all(self, path: str, files: Mapping[str, Mapping[str, Any]], there: Set[str] = frozenset()) -> None:
        """All `files` (with their facts) of the folder `path` are whole, and in the root from now on. Those in `there`
        were adopted.
        """
        in_parallel(lambda name: self.publish(f"{path}/{name}", files[name]), files.keys() - there)

    def cleanup(self, path: str, kept: Set[str], scratch: str) -> None:
        """The folder `path` is sealed: its subfolder `scratch`, and what else is not among the files `kept`, can go."""
        shutil.rmtree(self.local_path(f"{path}/{scratch}" if self.local else path), ignore_errors=True)
        if not self.local:
            stale = (self / path).files().keys() - kept
            in_parallel(lambda name: (self / f"{path}/{name}").remove(), stale)

    @contextlib.contextmanager
    def side_by_side(self, files: Mapping[str, StoredFile]) -> Iterator[Path]:
        """A folder of this machine with copies of remote files under these names, while inside."""
        scratch = self.local_path()
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch, prefix=".read-") as name:
            folder = Path(name)
            in_parallel(lambda file: files[file].load(lambda copy: link(copy, folder / file)), files)
            yield folder

    def _path(self, file: Path) -> str:
        return file.relative_to(self.local_path()).as_posix()


@contextlib.contextmanager
def path_in_errors(copy: Path, place: str) -> Iterator[None]:
    """Errors that name a copy, which will be gone, name the place instead."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(str(copy), place)) from error


def in_parallel(work: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """What the work makes of every item, several at once: storage takes its time to answer, and answers many."""
    pool = ThreadPoolExecutor(TRANSFERS, thread_name_prefix="transfer")
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error there is no use in the rest


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or where the file system has no such thing a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def hash_file(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_place(place: StoragePath) -> str | None:
    """sha256 (hex) of a file anywhere, read in pieces; None if there is none."""
    try:
        with opened(place) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except FileNotFoundError:
        return None


def _bytes_of(path: os.PathLike[str], start: int, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, start)


def _clear(folder: Path, kept: Iterable[str]) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in kept:
            shutil.rmtree(entry)
        elif entry.is_file():
            entry.unlink()


DEFAULT_ROOT = "must-root"
