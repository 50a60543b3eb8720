"""The cache: its limit, least recently used out first, and sharing by threads and processes."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.cache import SLACK, STALE_S, Cache, CacheKey, cache_folder
from tests.waiting import wait_until

CONTEXT = multiprocessing.get_context("spawn")


def content(name: str, size: int) -> bytes:
    """Return bytes that no other name has."""
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def key_of(name: str, size: int = 100, suffix: str = ".bin") -> CacheKey:
    return CacheKey(hashlib.sha256(content(name, size)).hexdigest(), size, suffix)


class Origin:
    """A source of files that records what was fetched."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    def get(self, cache: Cache, name: str, size: int = 100) -> bytes:
        """Return the bytes of a file read through the cache."""
        with cache.open(key_of(name, size), self.fetch(name, size)) as copy:
            return copy.read_bytes()

    def fetch(self, name: str, size: int = 100) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            self.fetched.append(name)
            path.write_bytes(content(name, size))

        return write


def cached_sizes(cache: Cache) -> dict[str, int]:
    """Return the sizes in bytes of the files in the cache's folder, locks left out, by name."""
    return {path.name: path.stat().st_size for path in (cache.folder / "files").glob("*/*")}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1600)


@pytest.fixture
def origin() -> Origin:
    return Origin()


def test_cache_open_fetches_once_and_keeps_the_suffix(cache: Cache, origin: Origin) -> None:
    assert [origin.get(cache, "a") for _ in range(3)] == [content("a", 100)] * 3
    assert origin.fetched == ["a"]
    assert [name[-4:] for name in cached_sizes(cache)] == [".bin"]
    with cache.open(key_of("a"), origin.fetch("a")) as copy:
        assert copy.suffix == ".bin"
    assert len(cached_sizes(cache)) == 1, "a name that was held is gone"


def test_cache_never_exceeds_its_limit(cache: Cache, origin: Origin) -> None:
    for number in range(60):
        assert origin.get(cache, f"file {number}", 10 + 7 * number) == content(f"file {number}", 10 + 7 * number)
        assert sum(cached_sizes(cache).values()) <= cache.limit


def test_cache_evicts_the_least_recently_used_first(cache: Cache, origin: Origin) -> None:
    for number, name in enumerate("abcdefgh"):
        origin.get(cache, name, 150)
        os.utime(cache.folder / "files" / _file(name, 150), (number, number))
    assert cache.find(key_of("b", 150))  # used just now
    origin.get(cache, "more", 600)
    left = [name for name in "abcdefgh" if cache.find(key_of(name, 150))]
    assert "b" in left
    assert "a" not in left
    assert left == ["b", *"acdefgh"[-len(left) + 1 :]], "the oldest, and no others"


def _file(name: str, size: int) -> str:
    sha256 = key_of(name, size).sha256
    return f"{sha256[:2]}/{sha256}.bin"


def test_cache_open_does_not_keep_a_file_larger_than_the_limit(cache: Cache, origin: Origin) -> None:
    origin.get(cache, "small")
    assert origin.get(cache, "large", 5000) == content("large", 5000)
    assert list(cached_sizes(cache).values()) == [100]
    assert origin.get(cache, "large", 5000) == content("large", 5000)
    assert origin.fetched == ["small", "large", "large"]


def test_cache_open_file_survives_eviction(cache: Cache, origin: Origin) -> None:
    with cache.open(key_of("a"), origin.fetch("a")) as copy:
        for number in range(40):
            origin.get(cache, str(number), 200)
        assert cache.find(key_of("a")) is None
        assert copy.read_bytes() == content("a", 100)


def test_cache_open_leaves_nothing_when_fetch_fails(cache: Cache, origin: Origin) -> None:
    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("the line is dead")

    for _ in range(2):
        with pytest.raises(OSError, match="the line is dead"), cache.open(key_of("a"), broken):
            pass
    assert cached_sizes(cache) == {}
    assert origin.get(cache, "a") == content("a", 100)


def test_cache_add_moves_a_local_file_in(cache: Cache, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(content("a", 100))
    cache.add(key_of("a"), tmp_path / "made")
    assert not (tmp_path / "made").exists()
    assert origin.get(cache, "a") == content("a", 100)
    assert origin.fetched == []
    (tmp_path / "large").write_bytes(content("large", 5000))
    cache.add(key_of("large", 5000), tmp_path / "large")
    assert not (tmp_path / "large").exists()
    assert sum(cached_sizes(cache).values()) == 100


def test_cache_open_fetches_a_truncated_file_again(cache: Cache, origin: Origin) -> None:
    origin.get(cache, "a")
    os.truncate(cache.folder / "files" / _file("a", 100), 0)
    assert origin.get(cache, "a") == content("a", 100)
    assert origin.fetched == ["a", "a"]


def test_cache_open_syncs_before_it_links(cache: Cache, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: done.append("safe"))
    monkeypatch.setattr(os, "link", lambda *_: done.append("linked"))
    origin.get(cache, "a")
    assert done == ["safe", "linked"]


def test_cache_open_without_hard_links_reads_and_does_not_keep(
    cache: Cache, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert [origin.get(cache, "a") for _ in range(2)] == [content("a", 100)] * 2
    assert cached_sizes(cache) == {}
    (tmp_path / "made").write_bytes(content("b", 100))
    cache.add(key_of("b"), tmp_path / "made")
    assert origin.get(cache, "b") == content("b", 100)


def test_cache_deletes_part_files_older_than_stale_s(cache: Cache, origin: Origin) -> None:
    origin.get(cache, "a")
    folder = cache.folder / "files" / _file("a", 100)[:2]
    for name, age in (("young", 0), ("old", STALE_S + 60)):
        (folder / f".{name}.part.bin").write_bytes(b"1234")
        os.utime(folder / f".{name}.part.bin", (time.time() - age,) * 2)
    for number in range(20):
        origin.get(cache, str(number), 200)
    assert (folder / ".young.part.bin").exists()
    assert not (folder / ".old.part.bin").exists()


def test_cache_open_fetches_once_for_many_threads(cache: Cache) -> None:
    fetched, barrier = [], threading.Barrier(8)

    def slow(path: Path) -> None:
        fetched.append(path)
        time.sleep(0.05)
        path.write_bytes(content("a", 100))

    def want(_: int) -> bytes:
        barrier.wait()
        with cache.open(key_of("a"), slow) as copy:
            return copy.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(want, range(8))) == [content("a", 100)] * 8
    assert len(fetched) == 1


def test_cache_open_by_many_threads_stays_below_a_small_limit(cache: Cache, origin: Origin) -> None:
    names = [str(number % 13) for number in range(400)]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda name: origin.get(cache, name, 300), names)
        assert list(found) == [content(name, 300) for name in names]
    assert sum(cached_sizes(cache).values()) <= cache.limit


def test_cache_evicts_after_more_than_the_limit_came_at_once(cache: Cache) -> None:
    count = cache.limit // 300 + 3
    barrier = threading.Barrier(count)

    def slowly(path: Path) -> None:
        barrier.wait()
        path.write_bytes(content(path.name, 300))

    def download(number: int) -> None:
        with cache.open(CacheKey(f"{number:02x}" * 32, 300, ".bin"), slowly):
            pass

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(download, range(count)))
    assert 0 < sum(cached_sizes(cache).values()) <= cache.limit


def test_cache_add_by_many_threads_stays_below_the_limit(cache: Cache, tmp_path: Path) -> None:
    def make(number: int) -> None:
        file = tmp_path / str(number)
        file.write_bytes(content(str(number), 300))
        os.utime(file, (number, number))  # made long before it is moved
        cache.add(key_of(str(number), 300), file)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(400)))
    assert sum(cached_sizes(cache).values()) <= cache.limit


def churn(folder: Path, limit: int) -> None:
    """Read many files through the cache, as a process of its own."""
    cache, origin = Cache(folder, limit), Origin()
    for number in range(150):
        name = str(number * 7 % 23)
        assert origin.get(cache, name, 200) == content(name, 200)


def test_cache_shared_by_processes_stays_near_the_limit(cache: Cache) -> None:
    processes = [CONTEXT.Process(target=churn, args=(cache.folder, cache.limit)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sum(cached_sizes(cache).values()) <= cache.limit * (1 + 2 / SLACK) + 200
    assert all(size == 200 for size in cached_sizes(cache).values())


def fetch_forever(folder: Path, limit: int) -> None:
    """Fetch a file without end, as a process of its own."""

    def never(path: Path) -> None:
        path.write_bytes(b"half")
        (folder / "fetching").touch()
        time.sleep(1000)

    with Cache(folder, limit).open(key_of("a"), never):
        pass


def test_cache_open_after_a_process_was_killed_while_fetching(cache: Cache, origin: Origin) -> None:
    process = CONTEXT.Process(target=fetch_forever, args=(cache.folder, cache.limit))
    process.start()
    wait_until((cache.folder / "fetching").exists, process)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert cache.find(key_of("a")) is None
    assert origin.get(cache, "a") == content("a", 100)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MUST_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("MUST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "must"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "must"
