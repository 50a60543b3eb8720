"""Let a fault strike this process at the n-th file that it makes durable (FAULT, FAULT_AT); note it in FAULT_MARK."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAULT, AT, MARK = os.environ["FAULT"], int(os.environ["FAULT_AT"]), Path(os.environ["FAULT_MARK"])
SHORTAGES = {"space": errno.ENOSPC, "memory": errno.ENOMEM, "open files": errno.EMFILE}
"""What a system says that is short of something, by what it is short of."""
_calls = itertools.count(1)


def _count_anew() -> None:
    global _calls  # noqa: PLW0603 - a count of this process alone
    _calls = itertools.count(1)


os.register_at_fork(after_in_child=_count_anew)


def _faulty(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        number = next(_calls)
        if number >= AT:
            MARK.touch()
        if number == AT and FAULT == "kill group":
            os.killpg(0, signal.SIGKILL)
        if number == AT and FAULT == "kill process":
            os.kill(os.getpid(), signal.SIGKILL)
        if number >= AT and FAULT in SHORTAGES:
            raise OSError(SHORTAGES[FAULT], os.strerror(SHORTAGES[FAULT]))
        return function(*arguments, **options)

    return call


for _name in ("fsync", "replace", "rename"):
    setattr(os, _name, _faulty(getattr(os, _name)))
