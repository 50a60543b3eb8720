"""Which of the processes that train together this one is: torchrun tells each in its environment. No torch.

RANK and WORLD_SIZE number the processes, LOCAL_RANK and LOCAL_WORLD_SIZE those on this machine, and at MASTER_ADDR and
MASTER_PORT they meet. Whatever else starts processes and says so is as good.
"""

from __future__ import annotations

import os

TOLD = "LOCAL_RANK"
"""Who starts processes says this; RANK and WORLD_SIZE alone number the machines of some clusters."""


def count() -> int:
    """How many processes train together; 1 if nobody said so."""
    return _told("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process, from 0."""
    return _told("RANK", 0)


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return _told("LOCAL_RANK", 0)


def local_count() -> int:
    """How many of them are on this machine; all, if nobody said otherwise."""
    return _told("LOCAL_WORLD_SIZE", count())


def is_first() -> bool:
    """Whether this process writes what the step leaves behind: one does, and it is the only one if it is alone."""
    return rank() == 0


def share(slots: int) -> range:
    """Which of a batch's `slots` this process takes: a run of them; shares differ by one at most."""
    return range(rank() * slots // count(), (rank() + 1) * slots // count())


def _told(name: str, unsaid: int) -> int:
    return int(os.environ.get(name, unsaid)) if TOLD in os.environ else unsaid
