"""Identify a process so that any other process can check whether it still runs. Imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import socket
from pathlib import Path

import psutil

ENDED = "ended"


@dataclasses.dataclass(frozen=True)
class ProcessId:
    """A process by machine, pid and start time. The pid alone is not enough, since pids are reused.

    The fields are the keys under which a process is stored on disk.
    """

    machine: str
    number: int
    """The pid."""
    started: str
    """Start in clock ticks since boot; ENDED for a process that had ended by then; "" where unknown."""

    @classmethod
    def current(cls) -> ProcessId:
        """Return the calling process."""
        return cls.from_pid(os.getpid())

    @classmethod
    def from_pid(cls, number: int) -> ProcessId:
        """Return the process of this machine that has the pid now."""
        return cls(machine(), number, _started(number) or "")

    def __str__(self) -> str:
        return f"process {self.number} on {self.machine.split()[0]}"

    @property
    def is_local(self) -> bool:
        """True on the machine of the process: only there can `has_ended` tell."""
        return self.machine == machine()

    def has_ended(self) -> bool:
        """Return True if the process ended; False if it runs, or if it is not on this machine and nobody can tell."""
        if not self.is_local:
            return False
        try:
            os.kill(self.number, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # the process of another user, so it runs
            pass
        now = _started(self.number)
        return now == ENDED or (now is not None and now != self.started)


@functools.cache
def machine() -> str:
    """Return a name of this machine, or of this container on it: equal names share their pids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux; psutil knows neither of the two
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(number: int) -> str | None:
    """Return when a process started: clock ticks since boot, ENDED for a zombie, None if it is gone or hidden."""
    boot = psutil.boot_time()  # before the process is looked up: psutil < 7 adds the boot time that it read last
    try:
        process = psutil.Process(number)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return ENDED
        if not psutil.LINUX:
            return ""  # its start would move when the clock is set
        return str(round((process.create_time() - boot) * os.sysconf("SC_CLK_TCK")))
    except (psutil.Error, OSError):  # "no such process" also means that this user may not see it
        return None
