"""Run a function in a process of its own, and follow it: progress, results and errors up, a stop down.

Steps run in processes of their own so that memory, threads, CUDA contexts and crashes of a step end with its process,
and the run outlives it and can start it again. The processes are forked from one that has imported torch and our code
and done nothing else, so a step starts at once. While that one still imports, a step that needs no torch can have a new
process instead. Each leads a process group of its own, so that Ctrl-C in a terminal
reaches the run alone. A process saves its state and ends when the run asks it to, on SIGTERM, and when the run is gone,
even if the run was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from flows.run.process_setup import set_up_process
from pipeline.errors import Interrupted, LostPeer, MustError, mask_credentials
from pipeline.steps.runtime import SHARED_SETTINGS, Runtime

CAN_FORK = sys.platform == "linux"
CONTEXT = multiprocessing.get_context("forkserver") if CAN_FORK else multiprocessing.get_context("spawn")
"""System libraries of other platforms don't survive a fork."""
NEW_PROCESS = multiprocessing.get_context("spawn")
PRELOADED = ("tasks.training", "tasks.network", "tasks.scoring", "evaluation.evaluate", "student.train")
"""Modules that take long to import and that most steps need."""
REPORT_S = 0.1
"""Between progress reports of a process."""
START_ATTEMPTS = 50
START_LOCK = threading.Lock()
"""Held while a process is started, because the environment of this one is changed for it."""
SAFE_PATH = "PYTHONSAFEPATH"
"""The variable that is Python's option -P."""
GRACE_S = 30.0
"""For processes to end after they were asked to stop, before they are killed."""
LOST_PEER_S = 5.0
"""After a process lost a peer, for another one to report the cause."""
GROUP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
LAST_OUTPUT = " Its last output was:"
Report = tuple[str, float, str]
"""Progress of a step: its name, the share done in [0, 1], a line of text."""


class Killed(Interrupted):
    """A process ended without a report: by a signal, or because the system ran out of memory."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A function to call in a process, and the environment of that process."""

    function: Callable[..., Any]
    """Called as `function(*arguments, runtime)`. Arguments and result are pickled."""
    arguments: tuple[Any, ...]
    log: Path | None = None
    """File that standard output and error are appended to; None for the terminal."""
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    threads: int = 0
    """Cores that it may keep busy; 0 for all."""
    needs_torch: bool = True
    """False to start it in a new process, which does not wait for torch."""


def warm_up() -> None:
    """Start importing the preloaded modules in the background, so that the first process need not wait for them."""
    if not CAN_FORK:
        return
    CONTEXT.set_forkserver_preload(list(PRELOADED))
    resource_tracker.ensure_running()  # first: its start unblocks the signals that are blocked below
    with START_LOCK, _without_current_folder(), _without_group_signals():
        forkserver.ensure_running()


@contextlib.contextmanager
def _without_group_signals() -> Iterator[None]:
    """Keep signals to the run's process group from what is started inside: it ends with the run, or when it is told."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_current_folder() -> Iterator[None]:
    """Keep a Python that is started inside from importing the current folder's files.

    The fork server imports the preloaded modules from there before it knows the run's path: a user's own `tasks.py`
    would be taken for our package.
    """
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


def run_in_process(call: Call, runtime: Runtime, environs: Sequence[Mapping[str, str]] = ({},)) -> Any:
    """Call a function in a process for each of `environs`, with these variables set, and return what it returns.

    Of several processes the result and the progress of the first one count. Raises what the function raises, with the
    traceback of its process as a note, and Killed if a process was killed.
    """
    settings = {name: getattr(runtime, name) for name in ("root", *SHARED_SETTINGS)}
    settings["workers"] = runtime.workers or call.threads
    if call.log:
        call.log.parent.mkdir(parents=True, exist_ok=True)
    children: list[_Child] = []
    try:
        for environ in environs:
            children.append(_Child(dataclasses.replace(call, environ={**call.environ, **environ}), settings))
        return _follow(children, runtime)
    finally:
        for child in children:
            child.request_stop()
        deadline = time.monotonic() + GRACE_S
        for child in children:
            child.end(deadline)


def _start_process(call: Call, settings: Mapping[str, Any]) -> tuple[BaseProcess, Connection]:
    """Start a process and return it with the run's end of its pipe. A fork server that was killed is started again."""
    context = CONTEXT if call.needs_torch else NEW_PROCESS
    for _ in range(START_ATTEMPTS):
        ours, theirs = context.Pipe()
        try:
            with START_LOCK:
                environ = dict(os.environ)
            process = context.Process(target=_main, args=(theirs, call, settings, environ), daemon=True)
            _start(process)
        except (EOFError, ConnectionError):  # multiprocessing starts another server once this one has wholly ended
            ours.close()
            time.sleep(REPORT_S)
            continue
        finally:
            theirs.close()
        return process, ours
    raise Killed("no process can be started: the one that starts them was ended again and again.")


def _start(process: BaseProcess) -> None:
    """Start a process. Other threads can start theirs while the fork server still imports what this one needs."""
    resource_tracker.ensure_running()  # first: its start unblocks the signals that are blocked below
    if isinstance(process, NEW_PROCESS.Process) or not CAN_FORK:
        with START_LOCK, _without_current_folder(), _without_group_signals():
            process.start()
    else:
        with START_LOCK, _without_current_folder():
            forkserver.ensure_running()
        process.start()


class _Child:
    """A process, as seen by the run."""

    def __init__(self, call: Call, settings: Mapping[str, Any]) -> None:
        self.process, self.connection = _start_process(call, settings)
        self.log = call.log
        self.done = False
        self.result: Any = None
        self._stop_requested = False

    def request_stop(self) -> None:
        if not self._stop_requested and not self.done:
            self._stop_requested = True
            with contextlib.suppress(OSError):  # it has ended
                self.connection.send("stop")

    def receive(self) -> Report | None:
        """Return its next progress report; None once it is done and `result` is set. Raises the error it ended with."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise Killed(self.exit_reason()) from None
        if kind == "progress":
            report: Report = content
            return report
        self.done = True
        if kind == "failed":
            raise content
        self.result = content
        return None

    def exit_reason(self) -> str:
        """Return a sentence that says how it ended, and the last line of its log."""
        code = self.process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log and self.log.exists() else ""
        last_output = f"{LAST_OUTPUT} {text.splitlines()[-1].strip()!r}." if text else ""
        hint = (
            " The system does that where memory runs out: smaller batches and fewer workers need less."
            if -code == signal.SIGKILL
            else ""
        )
        return f"its process was ended by {name}.{hint}{last_output}"

    def end(self, deadline: float) -> None:
        """Wait until it has ended; kill it at the deadline, in seconds of the monotonic clock."""
        if not self.done:
            self.process.join(max(0.0, deadline - time.monotonic()))
            self.process.kill()
        self.process.join()
        self.connection.close()


def _follow(children: list[_Child], runtime: Runtime) -> Any:
    """Pass on progress and stop requests until all processes are done. Returns the first one's result."""
    while not all(child.done for child in children):
        if runtime.stop.is_set():
            for child in children:
                child.request_stop()
        running = {child.connection: child for child in children if not child.done}
        for connection in wait(list(running), timeout=REPORT_S):
            child = running[connection]  # type: ignore[index]
            try:
                report = child.receive()
            except LostPeer as lost:
                raise _find_cause([other for other in children if not other.done], lost) from lost
            if report and child is children[0]:
                runtime.progress(*report)
    return children[0].result


def _find_cause(others: Sequence[_Child], lost: LostPeer) -> Exception:
    """Return the error that made a process lose a peer: the first of another process that is not itself a lost peer;
    `lost` if none comes in time.
    """
    deadline = time.monotonic() + LOST_PEER_S
    while running := {other.connection: other for other in others if not other.done}:
        ready = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for connection in ready:
            try:
                running[connection].receive()  # type: ignore[index]
            except LostPeer:
                continue
            except Exception as cause:
                return cause
    return lost


def _main(connection: Connection, call: Call, settings: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Run a call in this new process. `environ`: the run's environment, as the fork server may have an older one."""
    stop = threading.Event()
    _detach(stop)
    set_up_process()
    os.environ.update({**environ, **call.environ})
    if call.threads and call.needs_torch:
        import torch  # noqa: PLC0415 - preloaded in this process, and must not be loaded in the run's

        torch.set_num_threads(call.threads)
    threading.Thread(target=_wait_for_stop, args=(connection, stop), daemon=True).start()
    with _output_to(call.log):
        try:
            runtime = Runtime(progress=_ProgressSender(connection), stop=stop, **settings)
            if call.log:  # standard output goes there
                runtime = dataclasses.replace(runtime, log=functools.partial(print, flush=True))
            answer = "done", call.function(*call.arguments, runtime)
        except BaseException as error:
            trace = mask_credentials(traceback.format_exc())
            with contextlib.suppress(OSError):  # the disk of the log may be full
                print(trace, file=sys.stderr)
            if not isinstance(error, MustError):
                error.add_note(f"In the process of the step:\n{trace}")
            answer = "failed", error if _can_pickle(error) else MustError(f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):  # the run is gone; what is on disk serves the next one
            connection.send(answer)


def _can_pickle(error: BaseException) -> bool:
    """Return True if an exception survives pickling and unpickling; those of some libraries don't."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return False
    return True


def _detach(stop: threading.Event) -> None:
    """Lead a new process group, ignore Ctrl-C, and set `stop` on SIGTERM."""
    os.setsid()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)


def _wait_for_stop(connection: Connection, stop: threading.Event) -> None:
    """Set `stop` when the run sends anything, or when it is gone."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    stop.set()


class _ProgressSender:
    """Sends progress to the run, at most every REPORT_S; the first and the last report of a step are always sent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._last = -REPORT_S

    def __call__(self, step: str, done: float, line: str) -> None:
        with self._lock:
            now = time.monotonic()
            if 0 < done < 1 and now - self._last < REPORT_S:
                return
            self._last = now
            with contextlib.suppress(OSError):
                self._connection.send(("progress", (step, done, line)))


def open_private(path: str, flags: int) -> int:
    """Open a file that, if it is new, its owner alone may read: what libraries print can hold credentials."""
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def _output_to(log: Path | None) -> Iterator[None]:
    """Append standard output and error to a file, those of compiled code as well."""
    if log:
        with open(log, "ab", buffering=0, opener=open_private) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the disk of the log may be full
            sys.stdout.flush()
            sys.stderr.flush()
