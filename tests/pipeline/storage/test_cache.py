"""The cache: never more than its limit, what is used stays, whole files or none, for many threads and processes."""

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

CONTEXT = multiprocessing.get_context("spawn")


def content(name: str, size: int) -> bytes:
    """Bytes that no other name has."""
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def entry(name: str, size: int = 100, suffix: str = ".bin") -> CacheKey:
    return CacheKey(hashlib.sha256(content(name, size)).hexdigest(), size, suffix)


class Origin:
    """Where files come from; counts how often each was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get(self, cache: Cache, name: str, size: int = 100) -> bytes:
        """A file by way of the cache."""
        with cache.open(entry(name, size), self.fetch(name, size)) as copy:
            return copy.read_bytes()

    def fetch(self, name: str, size: int = 100) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            self.asked.append(name)
            path.write_bytes(content(name, size))

        return write


def inside(cache: Cache) -> dict[str, int]:
    """The files in the cache's folder, its locks left out, by name: their sizes."""
    return {path.name: path.stat().st_size for path in (cache.folder / "files").glob("*/*")}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1600)


@pytest.fixture
def origin() -> Origin:
    return Origin()


def test_a_file_is_fetched_once_and_keeps_its_suffix(cache: Cache, origin: Origin) -> None:
    assert [origin.get(cache, "a") for _ in range(3)] == [content("a", 100)] * 3
    assert origin.asked == ["a"]
    assert [name[-4:] for name in inside(cache)] == [".bin"]
    with cache.open(entry("a"), origin.fetch("a")) as copy:
        assert copy.suffix == ".bin"
    assert len(inside(cache)) == 1, "a name that was held is gone"


def test_it_never_grows_over_its_limit(cache: Cache, origin: Origin) -> None:
    for number in range(60):
        assert origin.get(cache, f"file {number}", 10 + 7 * number) == content(f"file {number}", 10 + 7 * number)
        assert sum(inside(cache).values()) <= cache.limit


def test_what_was_used_longest_ago_goes_first(cache: Cache, origin: Origin) -> None:
    for number, name in enumerate("abcdefgh"):
        origin.get(cache, name, 150)
        os.utime(cache.folder / "files" / _file(name, 150), (number, number))
    assert cache.find(entry("b", 150))  # used just now
    origin.get(cache, "more", 600)
    there = [name for name in "abcdefgh" if cache.find(entry(name, 150))]
    assert "b" in there
    assert "a" not in there
    assert there == ["b", *"acdefgh"[-len(there) + 1 :]], "the oldest, and no others"


def _file(name: str, size: int) -> str:
    sha256 = entry(name, size).sha256
    return f"{sha256[:2]}/{sha256}.bin"


def test_a_file_larger_than_the_limit_is_read_and_not_kept(cache: Cache, origin: Origin) -> None:
    origin.get(cache, "small")
    assert origin.get(cache, "large", 5000) == content("large", 5000)
    assert list(inside(cache).values()) == [100]
    assert origin.get(cache, "large", 5000) == content("large", 5000)
    assert origin.asked == ["small", "large", "large"]


def test_a_file_that_is_read_survives_being_taken_out(cache: Cache, origin: Origin) -> None:
    with cache.open(entry("a"), origin.fetch("a")) as copy:
        for number in range(40):
            origin.get(cache, str(number), 200)
        assert cache.find(entry("a")) is None
        assert copy.read_bytes() == content("a", 100)


def test_what_can_not_be_fetched_leaves_nothing(cache: Cache, origin: Origin) -> None:
    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("the line is dead")

    for _ in range(2):
        with pytest.raises(OSError, match="the line is dead"), cache.open(entry("a"), broken):
            pass
    assert inside(cache) == {}
    assert origin.get(cache, "a") == content("a", 100)


def test_a_file_made_here_moves_in(cache: Cache, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(content("a", 100))
    cache.add(entry("a"), tmp_path / "made")
    assert not (tmp_path / "made").exists()
    assert origin.get(cache, "a") == content("a", 100)
    assert origin.asked == []
    (tmp_path / "large").write_bytes(content("large", 5000))
    cache.add(entry("large", 5000), tmp_path / "large")
    assert not (tmp_path / "large").exists()
    assert sum(inside(cache).values()) == 100


def test_a_file_cut_short_by_a_power_failure_is_fetched_again(cache: Cache, origin: Origin) -> None:
    origin.get(cache, "a")
    os.truncate(cache.folder / "files" / _file("a", 100), 0)
    assert origin.get(cache, "a") == content("a", 100)
    assert origin.asked == ["a", "a"]


def test_a_file_is_safe_on_the_disk_before_it_is_in_the_cache(
    cache: Cache, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: done.append("safe"))
    monkeypatch.setattr(os, "link", lambda *_: done.append("linked"))
    origin.get(cache, "a")
    assert done == ["safe", "linked"]


def test_where_files_have_no_second_names_they_are_read_and_not_kept(
    cache: Cache, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert [origin.get(cache, "a") for _ in range(2)] == [content("a", 100)] * 2
    assert inside(cache) == {}
    (tmp_path / "made").write_bytes(content("b", 100))
    cache.add(entry("b"), tmp_path / "made")
    assert origin.get(cache, "b") == content("b", 100)


def test_what_killed_processes_left_is_cleared_after_a_day(cache: Cache, origin: Origin) -> None:
    origin.get(cache, "a")
    folder = cache.folder / "files" / _file("a", 100)[:2]
    for name, age in (("young", 0), ("old", STALE_S + 60)):
        (folder / f".{name}.part.bin").write_bytes(b"1234")
        os.utime(folder / f".{name}.part.bin", (time.time() - age,) * 2)
    for number in range(20):
        origin.get(cache, str(number), 200)
    assert (folder / ".young.part.bin").exists()
    assert not (folder / ".old.part.bin").exists()


def test_of_many_threads_that_want_a_file_one_fetches_it(cache: Cache) -> None:
    asked, together = [], threading.Barrier(8)

    def slow(path: Path) -> None:
        asked.append(path)
        time.sleep(0.05)
        path.write_bytes(content("a", 100))

    def want(_: int) -> bytes:
        together.wait()
        with cache.open(entry("a"), slow) as copy:
            return copy.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(want, range(8))) == [content("a", 100)] * 8
    assert len(asked) == 1


def test_many_threads_in_a_cache_that_is_too_small(cache: Cache, origin: Origin) -> None:
    names = [str(number % 13) for number in range(400)]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda name: origin.get(cache, name, 300), names)
        assert list(found) == [content(name, 300) for name in names]
    assert sum(inside(cache).values()) <= cache.limit


def test_more_at_once_than_the_limit_is_cut_back_when_it_is_there(cache: Cache) -> None:
    count = cache.limit // 300 + 3
    together = threading.Barrier(count)

    def slowly(path: Path) -> None:
        together.wait()
        path.write_bytes(content(path.name, 300))

    def download(number: int) -> None:
        with cache.open(CacheKey(f"{number:02x}" * 32, 300, ".bin"), slowly):
            pass

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(download, range(count)))
    assert 0 < sum(inside(cache).values()) <= cache.limit


def test_many_threads_move_files_in(cache: Cache, tmp_path: Path) -> None:
    def make(number: int) -> None:
        file = tmp_path / str(number)
        file.write_bytes(content(str(number), 300))
        os.utime(file, (number, number))  # made long before it is moved
        cache.add(entry(str(number), 300), file)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(400)))
    assert sum(inside(cache).values()) <= cache.limit


def churn(folder: Path, limit: int) -> None:
    """A process that reads many files through the cache."""
    cache, origin = Cache(folder, limit), Origin()
    for number in range(150):
        name = str(number * 7 % 23)
        assert origin.get(cache, name, 200) == content(name, 200)


def test_many_processes_share_a_cache(cache: Cache) -> None:
    processes = [CONTEXT.Process(target=churn, args=(cache.folder, cache.limit)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sum(inside(cache).values()) <= cache.limit * (1 + 2 / SLACK) + 200
    assert all(size == 200 for size in inside(cache).values())


def fetch_forever(folder: Path, limit: int) -> None:
    """A process that never comes to the end of a file."""

    def never(path: Path) -> None:
        path.write_bytes(b"half")
        (folder / "fetching").touch()
        time.sleep(1000)

    with Cache(folder, limit).open(entry("a"), never):
        pass


def test_a_killed_process_blocks_nobody_and_leaves_no_half_file(cache: Cache, origin: Origin) -> None:
    process = CONTEXT.Process(target=fetch_forever, args=(cache.folder, cache.limit))
    process.start()
    while not (cache.folder / "fetching").exists():
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert cache.find(entry("a")) is None
    assert origin.get(cache, "a") == content("a", 100)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MUST_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("MUST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "must"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "must"
