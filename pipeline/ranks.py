"""Which of the processes that train together this one is: torchrun tells each of them in its environment. No torch."""

from __future__ import annotations

import os

LAUNCHED = "TORCHELASTIC_RUN_ID"
"""Set by torchrun alone: `RANK` and `WORLD_SIZE` also number the machines of some clusters."""


def count() -> int:
    """How many processes train together; 1 if torchrun did not start this one."""
    return _told("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process, from 0."""
    return _told("RANK", 0)


def local_count() -> int:
    """How many of them are on this machine."""
    return _told("LOCAL_WORLD_SIZE", 1)


def is_first() -> bool:
    """Whether this process writes what the step leaves behind: one does, and it is the only one if it is alone."""
    return rank() == 0


def share(slots: int) -> range:
    """Which of a batch's `slots` this process takes: a run of them; shares differ by one at most."""
    return range(rank() * slots // count(), (rank() + 1) * slots // count())


def _told(name: str, alone: int) -> int:
    return int(os.environ[name]) if LAUNCHED in os.environ else alone
