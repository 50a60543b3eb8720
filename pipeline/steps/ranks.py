"""Read this process's place among those that train together from torchrun's environment variables. No torch.

RANK and WORLD_SIZE number all processes, LOCAL_RANK and LOCAL_WORLD_SIZE those on this machine; they meet at
MASTER_ADDR and MASTER_PORT. Any launcher that sets them will do.
"""

from __future__ import annotations

import os

LAUNCHED = "LOCAL_RANK"
"""Set by every launcher of processes; RANK and WORLD_SIZE alone number the machines of some clusters."""


def count() -> int:
    """Return the number of processes that train together; 1 without a launcher."""
    return _read("WORLD_SIZE", 1)


def rank() -> int:
    """Return the number of this process, from 0."""
    return _read("RANK", 0)


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return _read("LOCAL_RANK", 0)


def local_count() -> int:
    """Return the number of them on this machine; all, if the launcher does not say."""
    return _read("LOCAL_WORLD_SIZE", count())


def is_first() -> bool:
    """Return True if this process is the one that writes files."""
    return rank() == 0


def share(slots: int) -> range:
    """Return the consecutive `slots` of a batch that this process takes; shares differ by one at most."""
    return range(rank() * slots // count(), (rank() + 1) * slots // count())


def _read(name: str, default: int) -> int:
    return int(os.environ.get(name, default)) if LAUNCHED in os.environ else default
