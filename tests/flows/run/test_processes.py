"""run_in_process: results, errors, stops, and the ends of processes."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from flows.run import processes
from flows.run.processes import Call, Killed, run_in_process
from pipeline.errors import DataError, LostPeer, MustError, Stopped
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from tests.waiting import wait_until, wait_until_gone


class Unpicklable(Exception):
    """An exception that can't be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Twofold(Exception):
    """An exception that can be pickled and not unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def work(what: str, runtime: Runtime) -> object:
    """Do one of several things in a process."""
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
        case "variable":
            return os.environ.get("MUST_TEST_VARIABLE")
        case "rank":
            return os.environ["RANK"]
    return os.getpid(), os.getsid(0)


def call(what: str, runtime: Runtime | None = None) -> Any:
    runtime = runtime or Runtime(Root.of("."))
    return run_in_process(Call(work, (what,)), runtime)


def test_run_in_process_returns_from_a_process_group_of_its_own() -> None:
    reports: list[tuple[str, float, str]] = []
    runtime = Runtime(Root.of("."), progress=lambda *report: reports.append(report))
    process, group = call("nothing", runtime)
    assert process == group != os.getpid()
    assert not Path(f"/proc/{process}").exists()
    assert reports == [("step", 0.0, "nothing")]


@pytest.mark.skipif(not processes.CAN_FORK, reason="this system has no fork server")
def test_run_in_process_outlives_its_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = forkserver.ForkServer()  # that of the other tests would have to import torch again
    server.set_forkserver_preload([])
    for name in ("ensure_running", "connect_to_new_process"):
        monkeypatch.setattr(forkserver, name, getattr(server, name))
    call("nothing")
    for _ in range(2):
        os.kill(server._forkserver_pid, signal.SIGKILL)
        assert call("nothing")
    server._stop()


def test_run_in_process_passes_the_current_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork server has an older one: credentials may be set later, in a notebook."""
    assert call("variable") is None
    monkeypatch.setenv("MUST_TEST_VARIABLE", "now")
    assert call("variable") == "now"


def test_run_in_process_raises_the_error_of_the_process() -> None:
    with pytest.raises(DataError, match=r"^shard-000007 is damaged$"):
        call("data")
    with pytest.raises(KeyError, match="a bug") as raised:
        call("bug")
    assert 'raise KeyError("a bug")' in raised.value.__notes__[0]
    with pytest.raises(MustError, match="Unpicklable: holds a lock"):
        call("unpicklable")
    with pytest.raises(MustError, match=r"^Twofold: neither nor$"):
        call("twofold")


def test_killed_process_is_reported_with_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "step.log"
    with pytest.raises(Killed, match=r"SIGKILL.*memory runs out.*last output was: 'printed by killed'"):
        run_in_process(Call(work, ("killed",), log), Runtime(Root.of(tmp_path)))
    assert log.read_text("utf-8") == "printed by killed\n"


def test_run_in_process_forwards_a_stop() -> None:
    stop = threading.Event()
    runtime = Runtime(Root.of("."), stop=stop, progress=lambda *_: stop.set())
    with pytest.raises(Stopped, match="Stopped in waiting"):
        call("wait", runtime)


def test_run_in_process_gives_each_process_its_environ() -> None:
    ranks = [{"RANK": str(rank)} for rank in range(2)]
    assert run_in_process(Call(work, ("rank",)), Runtime(Root.of(".")), ranks) == "0"


def test_run_in_process_ends_the_others_if_one_fails(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(Killed):
        run_in_process(Call(kill_the_second, (tmp_path,)), Runtime(Root.of(tmp_path)), [{"RANK": "0"}, {"RANK": "1"}])
    print(f"{time.monotonic() - began:.1f} s")
    assert (tmp_path / "saved").read_text("utf-8") == "in order"


@pytest.mark.parametrize(
    ("ends", "error", "says"),
    [
        ("killed", Killed, "SIGKILL"),
        ("data", DataError, "shard-000007 is damaged"),
        ("bug", KeyError, "a bug"),
        ("variable", LostPeer, "connection reset by peer"),
    ],
)
def test_run_in_process_raises_the_cause_of_a_lost_peer(
    tmp_path: Path, ends: str, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LOST_PEER_S", 600.0)
    ranks = [{"RANK": "0"}, {"RANK": "1"}]
    with pytest.raises(error, match=says):
        run_in_process(Call(connected, (tmp_path / "socket", ends)), Runtime(Root.of(tmp_path)), ranks)


def connected(path: Path, ends: str, runtime: Runtime) -> None:
    """The second process ends; the first notices at once, the run later."""
    with socket.socket(socket.AF_UNIX) as line:
        if os.environ["RANK"] == "0":
            line.bind(str(path))
            line.listen()
            other, _ = line.accept()
            other.recv(1)
            raise LostPeer("connection reset by peer")
        wait_until(lambda: line.connect_ex(str(path)) == 0)
    time.sleep(0.5)
    work(ends, runtime)


def test_run_in_process_kills_deaf_processes_at_the_same_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[float] = []
    end = processes._Child.end

    def noted(self: processes._Child, deadline: float) -> None:
        deadlines.append(deadline)
        end(self, deadline)

    monkeypatch.setattr(processes, "GRACE_S", 0.5)
    monkeypatch.setattr(processes._Child, "end", noted)
    with pytest.raises(DataError):
        run_in_process(Call(deaf, (tmp_path,)), Runtime(Root.of(tmp_path)), [{"RANK": str(rank)} for rank in range(4)])
    assert len(deadlines) == 4
    assert len(set(deadlines)) == 1
    assert not [pid for pid in tmp_path.iterdir() if Path(f"/proc/{pid.name}").exists()]


def deaf(folder: Path, runtime: Runtime) -> None:
    """The first process fails once the others run; those ignore stops."""
    if os.environ["RANK"] != "0":
        (folder / str(os.getpid())).touch()
        time.sleep(10_000)
    wait_until(lambda: len(list(folder.iterdir())) == 3)
    raise DataError("damaged")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_run_in_process_survives_a_log_on_a_full_disk() -> None:
    with pytest.raises(DataError, match="shard-000007 is damaged"):
        run_in_process(Call(raise_data_error, (), Path("/dev/full")), Runtime(Root.of(".")))


def raise_data_error(runtime: Runtime) -> None:
    raise DataError("shard-000007 is damaged")


def kill_the_second(folder: Path, runtime: Runtime) -> None:
    """The second process is killed once the first has begun."""
    if os.environ["RANK"] == "1":
        wait_until((folder / "begun").exists)
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "begun").touch()
    runtime.stop.wait()
    (folder / "saved").write_text("in order", encoding="utf-8")


def test_run_in_process_ends_when_its_run_is_killed(tmp_path: Path, spawner: Any) -> None:
    """The process notices, saves what it has, and ends."""
    run = spawner.Process(target=start_run, args=(tmp_path,))
    run.start()
    wait_until((tmp_path / "process").exists, run)
    run.kill()
    run.join()
    process = int((tmp_path / "process").read_text("utf-8"))
    wait_until_gone(process)
    assert (tmp_path / "saved").read_text("utf-8") == "in order"


def start_run(folder: Path) -> None:
    run_in_process(Call(wait_for_stop, (folder,)), Runtime(Root.of(folder)))


def wait_for_stop(folder: Path, runtime: Runtime) -> None:
    """Write the pid, wait for a stop, and save."""
    (folder / ".process").write_text(str(os.getpid()), encoding="utf-8")
    os.replace(folder / ".process", folder / "process")
    runtime.stop.wait()
    (folder / "saved").write_text("in order", encoding="utf-8")
