"""How this process waits and how it keeps memory: two habits of the system's libraries that cost this work dearly.

Called by the front door, before torch is loaded. No torch here.
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Numbers of the C library's settings, from its malloc.h."""


def set_up_process() -> None:
    """Let threads without work sleep, and let memory that was used once stay with the process."""
    _sleep_when_idle()
    _keep_memory()


def _sleep_when_idle() -> None:
    """OpenMP's threads spin while they wait for each other, on cores that the loader's threads, or another process,
    need. That has to be said before torch loads OpenMP; a word of the user's own stands.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _keep_memory() -> None:
    """A model's intermediate results are blocks of tens of megabytes. The GNU C library gives each back to the system
    when it is freed and takes it anew, page by page, for the next image: up to a fifth of labelling's time.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:  # other C libraries have no such habit
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, -1)
        set_option(M_ARENA_MAX, 1)  # in the heap of a thread of its own, blocks over 64 MB would be given back again
