"""Which process is at work, told so that another one, on any machine, can find out whether it still is. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import socket
from pathlib import Path

ENDED = "ended"


@dataclasses.dataclass(frozen=True)
class ProcessId:
    """A process: its machine, its number there, and when it started, in the system's own count since it was booted:
    a number is given again, and clocks are set.
    """

    machine: str
    number: int
    started: str

    @classmethod
    def this(cls) -> ProcessId:
        """The process that asks."""
        return cls.numbered(os.getpid())

    @classmethod
    def numbered(cls, number: int) -> ProcessId:
        """The process of this machine that has the number now."""
        return cls(machine(), number, _started(number) or "")

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine, so that `ended` can tell."""
        return self.machine == machine()

    def ended(self) -> bool:
        """Whether the system of this machine knows that it has ended."""
        if not self.is_here:
            return False
        try:
            os.kill(self.number, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's, so it lives
            pass
        now = _started(self.number)
        return now == ENDED or (now is not None and now != self.started)


@functools.cache
def machine() -> str:
    """A name of this machine, or of this container on it: process numbers mean the same wherever it is the same."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(number: int) -> str | None:
    """When a process started, as the system tells it; None where it does not. A zombie has `ENDED`."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
    return ENDED if fields[0] in "ZX" else fields[19]
