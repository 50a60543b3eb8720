"""Work in processes of its own: what it does to its process ends with it, and the run outlives it.

The processes are forked from one that has loaded the code, torch included, and done nothing else: a step starts at
once. Each leads a process group of its own, so that Ctrl-C in a terminal is the run's to handle. A process ends in
order - it saves what there is to go on from - when it is asked to, when it gets a SIGTERM, and when the run that
started it is gone, however that went.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from pipeline.errors import Interrupted, LostPeer, MustError
from pipeline.steps.runtime import Runtime

FORKS = sys.platform == "linux"
CONTEXT = multiprocessing.get_context("forkserver") if FORKS else multiprocessing.get_context("spawn")
"""Elsewhere the system's libraries don't survive a fork."""
LOADED = ("tasks.training", "tasks.building", "tasks.scoring", "evaluation.evaluate", "student.train")
"""What takes long to import, and most steps need."""
REPORT_S = 0.1
"""Between progress reports of a process."""
GRACE_S = 30.0
"""For the others, when one of several processes that work together has failed."""

LOST_S = 5.0
"""A process that lost another one may be heard before the other, which knows why."""
GROUP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
Work = Callable[..., Any]
"""Called with its arguments and a Runtime; arguments and result go from process to process."""


class Killed(Interrupted):
    """A process ended without a word: by a signal, or because the system had no memory left for it."""


@dataclasses.dataclass(frozen=True)
class Call:
    """What a process is to do, on what machine, and where what it prints goes."""

    work: Work
    arguments: tuple[Any, ...]
    log: Path | None = None
    """None: the terminal."""
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    threads: int = 0
    """How many cores it may keep busy; 0 = all."""


def warm_up() -> None:
    """Begin to load the code; what is started later need not wait for it."""
    if FORKS:
        CONTEXT.set_forkserver_preload(list(LOADED))
        with _deaf():
            forkserver.ensure_running()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What is started inside hears no signal that may go to the run's whole process group: it ends with the run."""
    resource_tracker.ensure_running()  # else it is started inside, and lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_in_process(call: Call, runtime: Runtime, together: Sequence[Mapping[str, str]] = ({},)) -> Any:
    """Do the work in a process and return what it returns. `together`: several processes, each with this in its
    environment; the first one's result and progress count.

    Raises what the work raises, with the trace of its process as a note, and Killed if a process was killed.
    """
    machine = {name: getattr(runtime, name) for name in ("root", "device", "precision", "checkpoint_s")}
    machine["workers"] = runtime.workers or call.threads
    if call.log:
        call.log.parent.mkdir(parents=True, exist_ok=True)
    children: list[_Child] = []
    try:
        for own in together:
            children.append(_Child(dataclasses.replace(call, environ={**call.environ, **own}), machine))
        return _follow(children, runtime)
    finally:
        for child in children:
            child.ask_to_stop()
        until = time.monotonic() + GRACE_S
        for child in children:
            child.end(until)


class _Child:
    """A process at work, as the run sees it."""

    def __init__(self, call: Call, machine: Mapping[str, Any]) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        given = theirs, call, machine, dict(os.environ)
        self.process: BaseProcess = CONTEXT.Process(target=_work, args=given, daemon=True)
        self.process.start()
        theirs.close()
        self.log = call.log
        self.over = False
        self.result: Any = None
        self.asked = False

    def ask_to_stop(self) -> None:
        if not self.asked and not self.over:
            self.asked = True
            with contextlib.suppress(OSError):  # it has ended
                self.connection.send("stop")

    def hear(self) -> tuple[str, float, str] | None:
        """Its next message: a progress report, or None once it is over and has left its result."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise Killed(self.last_words()) from None
        if kind == "progress":
            report: tuple[str, float, str] = content
            return report
        self.over = True
        if kind == "failed":
            raise content
        self.result = content
        return None

    def last_words(self) -> str:
        """How it ended, and what it said before."""
        code = self.process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log and self.log.exists() else ""
        said = f" It said last: {text.splitlines()[-1].strip()!r}." if text else ""
        hint = " The system does that where memory runs out." if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}.{hint}{said}"

    def end(self, until: float) -> None:
        """Leave no process behind: one that was asked to stop and has not by `until` (monotonic) is made to."""
        if not self.over:
            self.process.join(max(0.0, until - time.monotonic()))
            self.process.kill()
        self.process.join()
        self.connection.close()


def _follow(children: list[_Child], runtime: Runtime) -> Any:
    """Pass progress up and a stop down, until all are over."""
    while not all(child.over for child in children):
        if runtime.stop.is_set():
            for child in children:
                child.ask_to_stop()
        at_work = {child.connection: child for child in children if not child.over}
        for connection in wait(list(at_work), timeout=REPORT_S):
            child = at_work[connection]  # type: ignore[index]
            report = _hear(child, children)
            if report and child is children[0]:
                runtime.progress(*report)
    return children[0].result


def _hear(child: _Child, together: Sequence[_Child]) -> tuple[str, float, str] | None:
    """Its next message. Where it failed as it lost another one, what that one says, or how it ended, is the reason."""
    try:
        return child.hear()
    except LostPeer as lost:
        raise _reason([other for other in together if not other.over], lost) from lost


def _reason(others: Sequence[_Child], lost: LostPeer) -> Exception:
    """What ended one of the others, of which each may have lost yet another; else what is known."""
    until = time.monotonic() + LOST_S
    while at_work := {other.connection: other for other in others if not other.over}:
        ready = wait(list(at_work), timeout=max(0.0, until - time.monotonic()))
        if not ready:
            break
        for connection in ready:
            try:
                at_work[connection].hear()  # type: ignore[index]
            except LostPeer:
                continue
            except Exception as reason:
                return reason
    return lost


def _work(connection: Connection, call: Call, machine: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """What a process does, in the environment of the run: the process it is forked from may have begun in another."""
    stop = threading.Event()
    _detach(stop)
    set_up_process()
    os.environ.update({**environ, **call.environ})
    if call.threads:
        import torch  # noqa: PLC0415 - is loaded here, and must not be where the run is

        torch.set_num_threads(call.threads)
    threading.Thread(target=_listen, args=(connection, stop), daemon=True).start()
    with _printing_to(call.log):
        try:
            runtime = Runtime(progress=_Reports(connection), stop=stop, **machine)
            answer = "done", call.work(*call.arguments, runtime)
        except BaseException as error:
            trace = traceback.format_exc()
            with contextlib.suppress(OSError):  # the disk of the log may be full
                print(trace, file=sys.stderr)
            if not isinstance(error, MustError):
                error.add_note(f"In the process of the step:\n{trace}")
            answer = "failed", error
        with contextlib.suppress(OSError):  # the run is gone: what is on disk is there for the next
            _send(connection, answer)


def _send(connection: Connection, answer: tuple[str, Any]) -> None:
    kind, content = answer
    if kind == "failed" and not _travels(content):
        content = MustError(f"{type(content).__name__}: {content}")
    connection.send((kind, content))


def _travels(error: Exception) -> bool:
    """Whether an exception can leave its process: some libraries' can't be packed, others not be unpacked."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return False
    return True


def _detach(stop: threading.Event) -> None:
    """A process group of its own, and SIGTERM as a wish to stop."""
    os.setsid()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)


def _listen(connection: Connection, stop: threading.Event) -> None:
    """Any word from the run is a wish to stop, and so is its end."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    stop.set()


class _Reports:
    """Progress to the run, now and then; the first and the last report of a step always."""

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


@contextlib.contextmanager
def _printing_to(log: Path | None) -> Iterator[None]:
    """Standard output and error, those of compiled code as well, at the end of a file."""
    if log:
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the disk of the log may be full
            sys.stdout.flush()
            sys.stderr.flush()
