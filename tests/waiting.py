"""Wait for events and for the death of what would bring them about, never for a number of seconds."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from pipeline.storage.process_id import ProcessId

Process = BaseProcess | subprocess.Popen[str] | subprocess.Popen[bytes]


def wait_until(condition: Callable[[], object], process: Process | None = None) -> None:
    """Wait until the condition holds; fail if the process that would bring it about ends before.

    A condition that never holds is ended by pytest's own timeout, which is there for hangs alone. One that takes long
    to look at is looked at less often: it would take the cores from what it waits for.
    """
    began = time.process_time()
    while not condition():
        code = _exit_code(process)
        assert code is None or condition(), f"ended with {code} too early"
        time.sleep(max(0.005, 4 * (time.process_time() - began)))
        began = time.process_time()


def _exit_code(process: Process | None) -> int | None:
    """Return what a process ended with; None while it runs, and for None."""
    if process is None:
        return None
    return process.exitcode if isinstance(process, BaseProcess) else process.poll()


def wait_until_gone(*pids: int) -> None:
    """Wait until the processes that have these pids now have ended."""
    processes = [ProcessId.from_pid(pid) for pid in pids]
    wait_until(lambda: all(process.has_ended() for process in processes))
