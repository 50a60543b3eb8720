"""The lock: one holder at a time, dead ones replaced, living ones left alone."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DataError, Stopped
from pipeline.storage import lock
from pipeline.storage.lock import hold_lock, lock_holders
from pipeline.storage.path import StoragePath
from pipeline.storage.process_id import ProcessId
from tests.waiting import wait_until

CONTEXT = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL_S", 0.01)
    monkeypatch.setattr(lock, "RENEW_S", 0.02)
    monkeypatch.setattr(lock, "GIVEN_UP_S", 0.05)


@pytest.fixture
def folder(tmp_path: Path) -> StoragePath:
    return StoragePath.of(str(tmp_path / "claims" / "step" / "mark"))


def never(*_: object) -> None:
    raise AssertionError("this was not to happen")


def ended_process() -> ProcessId:
    """Return a process of this machine that has ended."""
    child = CONTEXT.Process(target=int)
    child.start()
    child.join()
    return ProcessId(ProcessId.current().machine, child.pid or 0, "1")


def write_lease(folder: StoragePath, number: int, holder: ProcessId) -> None:
    (folder / f"{number}.json").write(json.dumps({"holder": holder.__dict__, "token": "another"}).encode())


def renew_lease(folder: StoragePath, number: int, renewed: int) -> None:
    """Count up, as the holder of a lease that `write_lease` wrote."""
    (folder / f"{number}.another").write(str(renewed).encode())


def test_hold_lock_creates_renews_and_removes_a_lease(folder: StoragePath) -> None:
    with hold_lock(folder, never, never):
        assert list(folder.files()) == ["0.json"]
        lease = (folder / "0.json").read()
        assert lock_holders(folder.parent.parent) == {"step/mark": ProcessId.current()}
        renewals = folder / f"0.{json.loads(lease)['token']}"
        wait_until(lambda: int(renewals.read_if_exists() or 0) >= 2)
        assert (folder / "0.json").read() == lease
    assert folder.files() == {}
    assert lock_holders(folder.parent.parent) == {}


def test_hold_lock_admits_one_of_many_threads_at_a_time(folder: StoragePath) -> None:
    at_work, most, done = 0, 0, 0
    lock = threading.Lock()

    def work(_: int) -> None:
        nonlocal at_work, most, done
        with hold_lock(folder, lambda _: None, never):
            with lock:
                at_work += 1
                most = max(most, at_work)
            time.sleep(0.01)
            with lock:
                at_work -= 1
                done += 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))
    assert (most, done) == (1, 12)
    assert folder.files() == {}


def test_hold_lock_calls_on_wait_which_may_raise(folder: StoragePath) -> None:
    told: list[ProcessId] = []

    def waiting(holder: ProcessId) -> None:
        told.append(holder)
        raise Stopped("enough")

    with hold_lock(folder, never, never), pytest.raises(Stopped), hold_lock(folder, waiting, never):
        never()
    assert told == [ProcessId.current()]


def test_hold_lock_takes_over_at_once_from_an_ended_local_holder(folder: StoragePath) -> None:
    write_lease(folder, 3, ended_process())
    with hold_lock(folder, never, never):
        assert sorted(folder.files()) == ["3.json", "4.json"]
    assert folder.files() == {}


def test_hold_lock_takes_over_what_this_process_could_not_release(folder: StoragePath) -> None:
    write_lease(folder, 0, ProcessId.current())
    assert lock_holders(folder.parent.parent) == {}
    with hold_lock(folder, never, never):
        pass
    assert folder.files() == {}


def test_hold_lock_is_released_once_the_storage_answers_again(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes of this machine would wait for as long as this one lives."""
    answers = threading.Event()
    remove = StoragePath.remove

    def remove_if_answered(path: StoragePath) -> None:
        if not answers.is_set():
            raise ConfigError("the storage does not answer")
        remove(path)

    monkeypatch.setattr(StoragePath, "remove", remove_if_answered)
    with hold_lock(folder, never, never):
        pass
    assert "0.json" in folder.files()
    answers.set()
    wait_until(lambda: not folder.files())


def test_hold_lock_leaves_no_lease_whose_creation_got_no_answer(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = StoragePath.create

    def create_without_answer(path: StoragePath, data: bytes) -> bool:
        create(path, data)
        raise ConfigError("the storage does not answer")

    monkeypatch.setattr(StoragePath, "create", create_without_answer)
    with pytest.raises(ConfigError, match="does not answer"), hold_lock(folder, never, never):
        raise AssertionError("it is not held")
    assert folder.files() == {}


@pytest.mark.parametrize("content", ["", "{", "5", "{}", '{"holder": {}, "token": ""}', "\0" * 99])
def test_hold_lock_names_a_lease_that_is_none(content: str, folder: StoragePath) -> None:
    (folder / "0.json").write(content.encode())
    message = r"0\.json: holds .*, which is no lease\. Delete it while nothing runs"
    with pytest.raises(DataError, match=message), hold_lock(folder, never, never):
        raise AssertionError("it is not held")
    with pytest.raises(DataError, match=r"0\.json: holds "):
        lock_holders(folder.parent.parent)


def test_hold_lock_takes_over_from_a_holder_whose_pid_was_reused(folder: StoragePath) -> None:
    here = ProcessId.current()
    write_lease(folder, 0, ProcessId(here.machine, here.number, "when the world was young"))
    with hold_lock(folder, never, never):
        pass


def test_hold_lock_waits_while_a_remote_holder_renews(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "DEAD_AFTER_S", 0.2)
    elsewhere = ProcessId("another machine", 1, "1")
    write_lease(folder, 0, elsewhere)
    renewed = 0

    def waiting(_: ProcessId) -> None:
        nonlocal renewed
        if renewed < 60:
            renewed += 1
            renew_lease(folder, 0, renewed)

    began = time.monotonic()
    with hold_lock(folder, waiting, never):
        assert renewed == 60
        assert time.monotonic() - began > 0.2


def test_hold_lock_waits_for_a_living_local_holder_that_does_not_renew(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "DEAD_AFTER_S", 3 * lock.POLL_S)
    write_lease(folder, 0, ProcessId.from_pid(os.getppid()))
    polls = itertools.count()

    def waiting(_: ProcessId) -> None:
        if next(polls) == 10:
            raise Stopped("still waiting")

    with pytest.raises(Stopped), hold_lock(folder, waiting, never):
        never()


def test_hold_lock_ignores_clocks_that_jump(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """The age of a lease is taken neither from the wall clock nor from the time of its file."""
    write_lease(folder, 0, ProcessId("another machine", 1, "1"))
    os.utime(f"{folder.path}/0.json", (1, 1))
    monkeypatch.setattr(time, "time", lambda: 4e9)

    def waiting(_: ProcessId) -> None:
        raise Stopped("still waiting")

    with pytest.raises(Stopped), hold_lock(folder, waiting, never):
        never()


def test_hold_lock_counts_a_slow_poll_once(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that hangs keeps the holder from renewing as well."""
    write_lease(folder, 0, ProcessId("another machine", 1, "1"))
    moments = itertools.count(0.0, 2 * lock.DEAD_AFTER_S)
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    told = 0

    def waiting(_: ProcessId) -> None:
        nonlocal told
        told += 1
        if told == 5:
            raise Stopped("still waiting")

    with pytest.raises(Stopped), hold_lock(folder, waiting, never):
        never()


def test_hold_lock_is_patient_with_a_remote_holder_that_was_slow_before(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "DEAD_AFTER_S", 5 * lock.POLL_S)
    elsewhere = ProcessId("another machine", 1, "1")
    write_lease(folder, 0, elsewhere)
    polls = 0

    def waiting(_: object) -> None:
        nonlocal polls
        polls += 1
        if polls == 4:
            renew_lease(folder, 0, 1)

    with hold_lock(folder, waiting, never):
        assert polls > 4 + lock.PATIENCE * 3


def test_hold_lock_creates_no_lease_after_one_whose_holder_released_it_and_ended(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waiting(holder: ProcessId) -> None:
        assert holder.machine == "another machine"
        raise Stopped("still waiting")

    def release_and_end(process: ProcessId) -> bool:
        (folder / "0.json").remove()
        write_lease(folder, 0, ProcessId("another machine", 1, "1"))
        return True

    monkeypatch.setattr(ProcessId, "has_ended", release_and_end)
    monkeypatch.setattr(StoragePath, "create", never)
    write_lease(folder, 0, ProcessId.current())
    with pytest.raises(Stopped), hold_lock(folder, waiting, never):
        pass


def test_hold_lock_recognizes_its_lease_when_the_answer_was_lost(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage created the lease, its answer was lost, and the repeated request was refused."""
    create = StoragePath.create
    monkeypatch.setattr(StoragePath, "create", lambda place, data: create(place, data) and create(place, data))
    with hold_lock(folder, never, never) as holds:
        assert holds()
        assert list(folder.files()) == ["0.json"]
    write_lease(folder, 3, ended_process())
    with hold_lock(folder, never, never):
        assert sorted(folder.files()) == ["3.json", "4.json"]
    assert folder.files() == {}


def test_is_held_notices_a_later_lease_that_stays(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 1000)
    with hold_lock(folder, never, never) as holds:
        assert holds()
        write_lease(folder, 1, ProcessId("another machine", 1, "1"))
        assert not holds()


def test_is_held_forgives_a_later_lease_that_is_given_up(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(wait: float) -> None:
        if wait:
            (folder / "1.json").remove()

    monkeypatch.setattr(lock, "RENEW_S", 1000)
    with hold_lock(folder, never, never) as is_held:
        write_lease(folder, 1, ProcessId("another machine", 1, "1"))
        monkeypatch.setattr(time, "sleep", give_up)
        assert is_held()


def test_is_held_is_false_once_another_took_over_and_is_done(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(_: float) -> None:
        (folder / "0.json").remove()
        (folder / "1.json").remove()

    monkeypatch.setattr(lock, "RENEW_S", 1000)
    with hold_lock(folder, never, never) as is_held:
        write_lease(folder, 1, ProcessId("another machine", 1, "1"))
        monkeypatch.setattr(time, "sleep", finish)
        assert not is_held()


def test_lock_holders_sees_a_holder_before_a_lease_of_a_dead_one(folder: StoragePath) -> None:
    with hold_lock(folder, never, never):
        write_lease(folder, 1, ended_process())
        assert lock_holders(folder.parent.parent) == {"step/mark": ProcessId.current()}


def test_on_lost_is_called_after_the_number_was_reused_whose_lease_stays(folder: StoragePath) -> None:
    lost = threading.Event()
    with hold_lock(folder, never, lost.set):
        (folder / "0.json").remove()  # as if another had taken over, done the work and gone
        write_lease(folder, 0, ProcessId("a third machine", 1, "1"))
        lost.wait()
    assert json.loads((folder / "0.json").read())["token"] == "another"


def test_lock_holders_skips_a_half_written_lease(folder: StoragePath) -> None:
    with hold_lock(folder, never, never):
        (folder / ".1.json.0123.part").write(b"{")
        assert lock_holders(folder.parent.parent) == {"step/mark": ProcessId.current()}
    with hold_lock(folder, never, never):
        pass


def test_lock_holders_leaves_out_a_remote_holder_that_stopped_renewing(folder: StoragePath) -> None:
    elsewhere = ProcessId("another machine", 1, "1")
    write_lease(folder, 0, elsewhere)
    assert lock_holders(folder.parent.parent) == {"step/mark": elsewhere}
    os.utime(str(folder / "0.json"), (0, time.time() - 2 * lock.FORGOTTEN_S))
    assert lock_holders(folder.parent.parent) == {}


def test_on_lost_is_called_after_a_takeover_whose_lease_stays(folder: StoragePath) -> None:
    lost = threading.Event()
    with hold_lock(folder, never, lost.set):
        write_lease(folder, 1, ProcessId("another machine", 1, "1"))
        lost.wait()
    assert list(folder.files()) == ["1.json"], "the lease of another process was removed"


def hold(path: str, begun: str) -> None:
    """Hold a lock until killed, as a process of its own."""
    with hold_lock(StoragePath.of(path), never, never):
        Path(begun).touch()
        time.sleep(1000)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_hold_lock_takes_over_from_a_killed_process(folder: StoragePath, tmp_path: Path, end: signal.Signals) -> None:
    process = CONTEXT.Process(target=hold, args=(folder.path, str(tmp_path / "begun")))
    process.start()
    waits = threading.Event()

    def waiting(holder: ProcessId) -> None:
        assert holder.number == process.pid
        waits.set()

    def take() -> Callable[[], None] | None:
        with hold_lock(folder, waiting, never):
            return None

    wait_until((tmp_path / "begun").exists, process)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(take)
        wait_until(waits.is_set, process)
        assert not taken.done()
        os.kill(process.pid or 0, end)
        process.join()
        taken.result()
    assert folder.files() == {}
