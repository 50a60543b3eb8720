"""Size-limited local cache of remote files, least recently used first out, shared by threads and processes.

<folder>/files/<2 digits>/<sha256><suffix>    a complete file under its hash: it never changes
<folder>/files/<2 digits>/.<...>.part         a file being fetched, or held by a reader
<folder>/locks/<2 digits>                     file locks, so that of many readers only one fetches a file

Files are synced first: after a power failure, one of the right size could have other bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.storage.atomic import fsync

SLACK = 16
"""The folder is scanned once for every 1/SLACK of the limit that is added."""
STALE_S = 86_400
"""A part file of this age was left by a killed process."""


class CacheKey(NamedTuple):
    """The identity of a file: the sha256 (hex) of its bytes, its size in bytes, and its suffix (`.parquet`)."""

    sha256: str
    size: int
    suffix: str


def cache_folder() -> Path:
    """Return the folder of the cache: MUST_CACHE, or `must` in the user's cache folder."""
    folder = os.environ.get("MUST_CACHE")
    return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "must"


class Cache:
    """The cache in a folder, of at most `limit` bytes.

    A single process stays below the limit. Each further one may exceed it by 1/SLACK, plus what it is fetching. A file
    larger than the limit is kept only while it is read. Evicted files stay readable where they are open.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._budget = 0  # bytes that may be added before the next scan of the folder
        self._incoming = 0  # bytes of that budget that are being fetched
        self._overfull = False  # more is being fetched than the limit allows: evict again afterwards
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Cache], tuple[Path, int]]:
        return Cache, (self.folder, self.limit)

    def find(self, key: CacheKey) -> Path | None:
        """Return the cached file, if there is one, and mark it as used. It may be evicted at any moment."""
        path = self._path(key)
        try:
            os.utime(path)
            if path.stat().st_size == key.size:
                return path
        except FileNotFoundError:
            return None
        path.unlink(missing_ok=True)  # a power failure cut it short
        return None

    @contextlib.contextmanager
    def open(self, key: CacheKey, fetch: Callable[[Path], None]) -> Iterator[Path]:
        """Yield the cached file under a private name that is not evicted, calling `fetch(path)` if it is not cached."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        private = path.with_name(f".{uuid.uuid4().hex[:12]}.part{key.suffix}")
        try:
            if not self._link(key, private):
                with self._fetch_lock(key):  # another thread or process may just have fetched it
                    if not self._link(key, private):
                        self._fetch(key, private, fetch)
            yield private
        finally:
            private.unlink(missing_ok=True)

    def add(self, key: CacheKey, file: Path) -> None:
        """Move a local file into the cache, once the remote storage holds it too."""
        if key.size > self.limit:
            file.unlink()
            return
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._reserve(key.size):
            fsync(file)
            os.utime(file)  # first: another thread may evict it again at once
            os.replace(file, path)

    def _path(self, key: CacheKey) -> Path:
        return self.folder / "files" / key.sha256[:2] / f"{key.sha256}{key.suffix}"

    def _link(self, key: CacheKey, private: Path) -> bool:
        path = self.find(key)
        if path is None:
            return False
        try:
            os.link(path, private)
        except OSError:  # evicted just now, or a file system without hard links
            return False
        return True

    def _fetch(self, key: CacheKey, private: Path, fetch: Callable[[Path], None]) -> None:
        if key.size > self.limit:
            fetch(private)
            return
        with self._reserve(key.size):
            fetch(private)
            fsync(private)
            with contextlib.suppress(OSError):  # already cached by now, or a file system without hard links
                os.link(private, self._path(key))

    @contextlib.contextmanager
    def _fetch_lock(self, key: CacheKey) -> Iterator[None]:
        """Let one thread or process at a time fetch this file, or one whose hash begins with the same two digits.

        The system releases the lock of a killed process.
        """
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / key.sha256[:2], "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _reserve(self, size: int) -> Iterator[None]:
        """Make room for `size` bytes, which are added inside. Now and then this scans the folder and evicts."""
        with self._lock:
            self._incoming += size
            if self._incoming > self._budget:
                self._evict()
        try:
            yield
        finally:
            with self._lock:
                self._incoming -= size
                self._budget -= size
                if self._overfull and not self._incoming:
                    self._evict()

    def _evict(self) -> None:
        """Delete the least recently used files until the incoming bytes fit with some slack, if the limit allows."""
        slack = self.limit // SLACK
        room = self.limit - self._incoming - slack
        files = sorted(_cached_files(self.folder / "files"))
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= max(0, room):
                break
            with contextlib.suppress(FileNotFoundError):  # another process evicts as well
                os.unlink(path)
            total -= size
        self._budget, self._overfull = self._incoming + slack, room < 0


def _cached_files(folder: Path) -> Iterator[tuple[float, int, str]]:
    """Yield time of last use, size and path of each file. Part files are in use and don't count; stale ones go."""
    stale = time.time() - STALE_S
    for subfolder in folder.glob("??"):
        for entry in os.scandir(subfolder):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                if entry.name.startswith(".") and stat.st_mtime < stale:
                    os.unlink(entry.path)
                elif not entry.name.startswith("."):
                    yield stat.st_mtime, stat.st_size, entry.path
