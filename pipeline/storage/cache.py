"""Copies, on this machine, of files that lie elsewhere: one folder with a limit, what was used longest ago goes first.

    <folder>/files/<2 digits>/<sha256><suffix>    a file's bytes, whole, under their hash: they never change
    <folder>/files/<2 digits>/.<...>.part         on its way in, or held by a reader
    <folder>/locks/<2 digits>                     of many that want a file at once, one fetches it

Any number of threads and processes may share a folder.
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

from pipeline.storage.atomic import sync

SLACK = 16
"""The folder is looked through once per so small a part of the limit that is added to it."""
OLD_S = 86_400
"""A part as old as this was left by a process that was killed."""


class CacheKey(NamedTuple):
    """What a file is known by: the hash of its bytes, their number, and how its name ends (`.parquet`)."""

    sha256: str
    size: int
    suffix: str


def cache_folder() -> Path:
    """Where the cache is: MUST_CACHE, or `must` in the user's own folder for caches."""
    told = os.environ.get("MUST_CACHE")
    return Path(told) if told else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "must"


class Cache:
    """The cache in a folder, of at most `limit` bytes.

    One process alone stays below the limit; each further one may pass it by a sixteenth, and so may what is on its way
    at one moment. A file larger than the limit is kept no longer than it is read. Open files live on when taken out.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._left = 0  # bytes that may be added before the folder is looked through again,
        self._coming = 0  # and those of them that are on their way
        self._crowded = False  # whether more came at once than the limit allows: then it is looked through afterwards
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Cache], tuple[Path, int]]:
        return Cache, (self.folder, self.limit)

    def find(self, entry: CacheKey) -> Path | None:
        """The copy, which may be taken out at any moment, if there is one. It counts as used now."""
        path = self._path(entry)
        try:
            os.utime(path)
            whole = path.stat().st_size == entry.size  # a machine that lost its power may have lost part of a file
        except FileNotFoundError:
            return None
        if not whole:
            path.unlink(missing_ok=True)
        return path if whole else None

    @contextlib.contextmanager
    def hold(self, entry: CacheKey, fetch: Callable[[Path], None]) -> Iterator[Path]:
        """The copy, under a name that is nobody else's while inside; `fetch` makes it if it is not there."""
        held = self._part(entry)
        try:
            if not self._link(entry, held):
                with self._fetching(entry):  # somebody else may just have done it
                    if not self._link(entry, held):
                        self._bring(entry, held, fetch)
            yield held
        finally:
            held.unlink(missing_ok=True)

    def take(self, entry: CacheKey, file: Path) -> None:
        """Move a file of this disk into the cache: it was made here, and lies elsewhere as well by now."""
        if entry.size > self.limit:
            file.unlink()
            return
        path = self._path(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._room(entry.size):
            os.utime(file)  # before: another thread may take it out again at once
            os.replace(file, path)

    def _path(self, entry: CacheKey) -> Path:
        return self.folder / "files" / entry.sha256[:2] / f"{entry.sha256}{entry.suffix}"

    def _part(self, entry: CacheKey) -> Path:
        path = self._path(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".{uuid.uuid4().hex[:12]}.part{entry.suffix}")

    def _link(self, entry: CacheKey, held: Path) -> bool:
        path = self.find(entry)
        if path is None:
            return False
        try:
            os.link(path, held)
        except OSError:  # taken out just now, or this file system has no second names
            return False
        return True

    def _bring(self, entry: CacheKey, held: Path, fetch: Callable[[Path], None]) -> None:
        if entry.size > self.limit:
            fetch(held)
            return
        with self._room(entry.size):
            fetch(held)
            sync(held)  # its length may come first: after a power failure the file would be there with other bytes
            with contextlib.suppress(OSError):  # somebody else was faster, or this file system has no second names
                os.link(held, self._path(entry))

    @contextlib.contextmanager
    def _fetching(self, entry: CacheKey) -> Iterator[None]:
        """While inside, nobody else, in any thread or process, fetches this file (or one whose hash begins like its).

        The system lets go of the lock of a process that is killed.
        """
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / entry.sha256[:2], "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Room for so many bytes, which are there when this ends: made by a look through the folder now and then, which
        takes out files until there is some slack as well.
        """
        with self._lock:
            self._coming += size
            if self._coming > self._left:
                self._make_room()
        try:
            yield
        finally:
            with self._lock:
                self._coming -= size
                self._left -= size
                if self._crowded and not self._coming:
                    self._make_room()

    def _make_room(self) -> None:
        """Take out files until what is on its way fits in, with some slack; more than the limit never does."""
        slack = self.limit // SLACK
        room = self.limit - self._coming - slack
        _shrink(self.folder / "files", max(0, room))
        self._left, self._crowded = self._coming + slack, room < 0


class _Copy(NamedTuple):
    used: float
    size: int
    path: str


def _shrink(folder: Path, limit: int) -> None:
    """Take out what was used longest ago, until the rest is no larger than `limit`."""
    copies = sorted(_copies(folder))
    total = sum(copy.size for copy in copies)
    for copy in copies:
        if total <= limit:
            return
        with contextlib.suppress(FileNotFoundError):  # another process takes files out as well
            os.unlink(copy.path)
        total -= copy.size


def _copies(folder: Path) -> Iterator[_Copy]:
    """The files of the cache. Parts don't count: those of today are being written or read, older ones are deleted."""
    old = time.time() - OLD_S
    for below in folder.glob("??"):
        for entry in os.scandir(below):
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat()
                if entry.name.startswith(".") and facts.st_mtime < old:
                    os.unlink(entry.path)
                elif not entry.name.startswith("."):
                    yield _Copy(facts.st_mtime, facts.st_size, entry.path)
