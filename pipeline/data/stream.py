"""Protocols of what a training reads: a stream of local batches, each of which can be split into microbatches."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol


class LocalBatch(Protocol):
    """The images of a step's batch that this process takes, not collated yet."""

    @property
    def keys(self) -> list[str]:
        """The images' keys."""

    def split(self, count: int) -> Sequence[Any]:
        """Collate the images, in order, into `count` microbatches of nearly equal size, which have `keys`, too."""


class BatchStream(Protocol):
    """An endless stream of local batches, which can begin at any step."""

    def batches(self, start: int) -> Generator[LocalBatch]:
        """Yield the local batch of step `start` and of every step after it."""


def split_evenly(count: int, parts: int) -> list[slice]:
    """Split `count` items into so many runs, whose lengths differ by one at most."""
    return [slice(part * count // parts, (part + 1) * count // parts) for part in range(parts)]
