"""Work in processes of its own: results, errors, stops and ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flows.run import processes
from flows.run.processes import Call, Killed, run_in_process
from pipeline.errors import DataError, LostPeer, MustError, Stopped
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from tests.flows.tiny import within


class Unpicklable(Exception):
    """An exception that can't leave its process."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Twofold(Exception):
    """An exception that leaves its process and can't be put together again in another."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def work(what: str, runtime: Runtime) -> object:
    """What the processes below do."""
    runtime.progress("step", 0.0, what)
    print(f"printed by {what}")
    match what:
        case "data":
            raise DataError("shard-000007 is damaged")
        case "bug":
            raise KeyError("a bug")
        case "unpicklable":
            raise Unpicklable
        case "twofold":
            raise Twofold("neither", "nor")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait":
            runtime.stop.wait()
            runtime.check_stop("waiting")
        case "word":
            return os.environ.get("MUST_TEST_WORD")
        case "rank":
            return os.environ["RANK"]
    return os.getpid(), os.getsid(0)


def call(what: str, runtime: Runtime | None = None) -> Any:
    runtime = runtime or Runtime(Root.of("."))
    return run_in_process(Call(work, (what,)), runtime)


def test_the_result_comes_from_a_process_group_of_its_own() -> None:
    reports: list[tuple[str, float, str]] = []
    runtime = Runtime(Root.of("."), progress=lambda *report: reports.append(report))
    process, group = call("nothing", runtime)
    assert process == group != os.getpid()
    assert not Path(f"/proc/{process}").exists()
    assert reports == [("step", 0.0, "nothing")]


def test_a_process_has_the_environment_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is forked from has that of an earlier one, as where credentials are set in a notebook."""
    assert call("word") is None
    monkeypatch.setenv("MUST_TEST_WORD", "now")
    assert call("word") == "now"


def test_an_error_is_raised_as_it_was_raised_there() -> None:
    with pytest.raises(DataError, match=r"^shard-000007 is damaged$"):
        call("data")
    with pytest.raises(KeyError, match="a bug") as raised:
        call("bug")
    assert 'raise KeyError("a bug")' in raised.value.__notes__[0]
    with pytest.raises(MustError, match="Unpicklable: holds a lock"):
        call("unpicklable")
    with pytest.raises(MustError, match=r"^Twofold: neither nor$"):
        call("twofold")


def test_a_killed_process_is_told_with_what_it_said_last(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "step.log"
    with pytest.raises(Killed, match=r"SIGKILL.*memory runs out.*said last: 'printed by killed'"):
        run_in_process(Call(work, ("killed",), log), Runtime(Root.of(tmp_path)))
    assert log.read_text("utf-8") == "printed by killed\n"


def test_a_stop_reaches_the_process() -> None:
    stop = threading.Event()
    runtime = Runtime(Root.of("."), stop=stop, progress=lambda *_: stop.set())
    with pytest.raises(Stopped, match="Stopped in waiting"):
        call("wait", runtime)


def test_the_processes_of_several_that_work_together_know_who_they_are() -> None:
    ranks = [{"RANK": str(rank)} for rank in range(2)]
    assert run_in_process(Call(work, ("rank",)), Runtime(Root.of(".")), ranks) == "0"


def test_if_one_of_several_fails_the_others_are_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(Killed):
        run_in_process(Call(one_of_two, (tmp_path,)), Runtime(Root.of(tmp_path)), [{"RANK": "0"}, {"RANK": "1"}])
    print(f"{time.monotonic() - began:.1f} s")
    assert (tmp_path / "saved").read_text("utf-8") == "in order"


@pytest.mark.parametrize(
    ("ends", "error", "says"),
    [
        ("killed", Killed, "SIGKILL"),
        ("data", DataError, "shard-000007 is damaged"),
        ("bug", KeyError, "a bug"),
        ("word", LostPeer, "connection reset by peer"),
    ],
)
def test_who_lost_another_one_is_not_the_reason(tmp_path: Path, ends: str, error: type[Exception], says: str) -> None:
    ranks = [{"RANK": "0"}, {"RANK": "1"}]
    with pytest.raises(error, match=says):
        run_in_process(Call(connected, (tmp_path / "socket", ends)), Runtime(Root.of(tmp_path)), ranks)


def connected(path: Path, ends: str, runtime: Runtime) -> None:
    """The second ends, of which the first hears at once, and everybody else a second later."""
    with socket.socket(socket.AF_UNIX) as line:
        if os.environ["RANK"] == "0":
            line.bind(str(path))
            line.listen()
            other, _ = line.accept()
            other.recv(1)
            raise LostPeer("connection reset by peer")
        while line.connect_ex(str(path)):
            time.sleep(0.01)
    time.sleep(1)
    work(ends, runtime)


def test_who_does_not_hear_is_ended_at_the_same_time_as_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 2.0)
    began = time.monotonic()
    with pytest.raises(DataError):
        run_in_process(Call(deaf, (tmp_path,)), Runtime(Root.of(tmp_path)), [{"RANK": str(rank)} for rank in range(4)])
    heard = float((tmp_path / "failed").read_text("utf-8"))
    print(f"{time.monotonic() - began:.1f} s, {time.monotonic() - heard:.1f} s after the failure")
    assert time.monotonic() - heard < 3 * processes.GRACE_S


def deaf(folder: Path, runtime: Runtime) -> None:
    """The first fails; the others wait for it, and for nothing else."""
    if os.environ["RANK"] == "0":
        time.sleep(1)
        (folder / "failed").write_text(str(time.monotonic()), "utf-8")
        raise DataError("damaged")
    time.sleep(600)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_log_on_a_full_disk_costs_the_log_alone() -> None:
    with pytest.raises(DataError, match="shard-000007 is damaged"):
        run_in_process(Call(fails_quietly, (), Path("/dev/full")), Runtime(Root.of(".")))


def fails_quietly(runtime: Runtime) -> None:
    raise DataError("shard-000007 is damaged")


def one_of_two(folder: Path, runtime: Runtime) -> None:
    """The second is killed once the first is at work."""
    if os.environ["RANK"] == "1":
        while not (folder / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "begun").touch()
    runtime.stop.wait()
    (folder / "saved").write_text("in order", encoding="utf-8")


def test_a_process_outlives_its_run_only_to_end_in_order(tmp_path: Path, spawner: Any) -> None:
    """The run is killed; its process hears of it, saves what it has, and ends."""
    run = spawner.Process(target=run_alone, args=(tmp_path,))
    run.start()
    within((tmp_path / "process").exists, run)
    run.kill()
    run.join()
    process = int((tmp_path / "process").read_text("utf-8"))
    while Path(f"/proc/{process}").exists():
        time.sleep(0.01)
    assert (tmp_path / "saved").read_text("utf-8") == "in order"


def run_alone(folder: Path) -> None:
    run_in_process(Call(alone, (folder,)), Runtime(Root.of(folder)))


def alone(folder: Path, runtime: Runtime) -> None:
    """Waits for the end."""
    (folder / ".process").write_text(str(os.getpid()), encoding="utf-8")
    os.replace(folder / ".process", folder / "process")
    runtime.stop.wait()
    (folder / "saved").write_text("in order", encoding="utf-8")
