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

from flows.processes import Call, Killed, carry_out
from pipeline.errors import DataError, MustError, Stopped
from pipeline.roots import Root
from pipeline.runtime import Runtime
from tests.flows.tiny import within


class Unpicklable(Exception):
    """An exception that can't leave its process."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


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
    return carry_out(Call(work, (what,)), runtime)


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


def test_a_killed_process_is_told_with_what_it_said_last(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "step.log"
    with pytest.raises(Killed, match=r"SIGKILL.*memory runs out.*said last: 'printed by killed'"):
        carry_out(Call(work, ("killed",), log), Runtime(Root.of(tmp_path)))
    assert log.read_text("utf-8") == "printed by killed\n"


def test_a_stop_reaches_the_process() -> None:
    stop = threading.Event()
    runtime = Runtime(Root.of("."), stop=stop, progress=lambda *_: stop.set())
    with pytest.raises(Stopped, match="Stopped in waiting"):
        call("wait", runtime)


def test_the_processes_of_several_that_work_together_know_who_they_are() -> None:
    ranks = [{"RANK": str(rank)} for rank in range(2)]
    assert carry_out(Call(work, ("rank",)), Runtime(Root.of(".")), ranks) == "0"


def test_if_one_of_several_fails_the_others_are_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(Killed):
        carry_out(Call(one_of_two, (tmp_path,)), Runtime(Root.of(tmp_path)), [{"RANK": "0"}, {"RANK": "1"}])
    print(f"{time.monotonic() - began:.1f} s")
    assert (tmp_path / "saved").read_text("utf-8") == "in order"


def test_who_lost_the_connection_to_one_that_was_killed_is_not_the_reason(tmp_path: Path) -> None:
    ranks = [{"RANK": "0"}, {"RANK": "1"}]
    with pytest.raises(Killed, match="SIGKILL"):
        carry_out(Call(connected, (tmp_path / "socket",)), Runtime(Root.of(tmp_path)), ranks)


def connected(path: Path, runtime: Runtime) -> None:
    """The second is killed, of which the first hears at once."""
    with socket.socket(socket.AF_UNIX) as line:
        if os.environ["RANK"] == "0":
            line.bind(str(path))
            line.listen()
            other, _ = line.accept()
            other.recv(1)
            raise RuntimeError("connection reset by peer")
        while line.connect_ex(str(path)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


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
    carry_out(Call(alone, (folder,)), Runtime(Root.of(folder)))


def alone(folder: Path, runtime: Runtime) -> None:
    """Waits for the end."""
    (folder / ".process").write_text(str(os.getpid()), encoding="utf-8")
    os.replace(folder / ".process", folder / "process")
    runtime.stop.wait()
    (folder / "saved").write_text("in order", encoding="utf-8")
