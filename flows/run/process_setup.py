"""Set up a process for fast image work: idle threads sleep, and freed memory stays with the process.

To be called before torch is loaded. Imports no torch.
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Options of the C library's mallopt, from its malloc.h."""


def set_up_process() -> None:
    """Let OpenMP threads sleep while they wait, and keep freed memory."""
    # OpenMP's threads spin while they wait for each other, on cores that the loader's threads or other processes need.
    # It reads this variable when torch loads it; a value of the user's own stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A model's intermediate results are blocks of tens of megabytes. By default the C library gives each back when it
    # is freed and maps it again, page by page, for the next image: up to a fifth of labelling's time.
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:  # other C libraries don't do this
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, -1)
        set_option(M_ARENA_MAX, 1)  # a thread's own arena would still give blocks over 64 MB back
