"""Prefetch to a device: split, collate and copy each batch there while the device computes the one before."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from pipeline.data.prefetch import prefetch
from pipeline.data.stream import LocalBatch
from pipeline.training.transfer import DeviceCopier

ASYNCHRONOUS = ("cuda",)
"""Devices that compute while the host goes on; all others compute on the host's cores, which a thread would take."""
AHEAD = 2
"""Batches on an asynchronous device: the one it computes, and the next."""


class SplitBatch(NamedTuple):
    """A local batch that was split into microbatches."""

    local: LocalBatch
    microbatches: Sequence[Any]
    amounts: Sequence[Mapping[str, float]]
    """Of each microbatch, counted on the host: `Objective.amounts`."""


def prefetch_to_device(
    batches: Iterator[LocalBatch], split: Callable[[LocalBatch], SplitBatch], device: str
) -> Generator[SplitBatch]:
    """Yield each batch as `split` makes it, with its microbatches on the device.

    For an asynchronous device one thread does that a batch ahead. Where the device's memory does not hold the next
    batch yet, its microbatches stay on the host. Close it before `batches`.
    """
    if device not in ASYNCHRONOUS:
        yield from map(split, batches)
        return
    copier = DeviceCopier() if device == "cuda" else None

    def take(_: int) -> tuple[SplitBatch, torch.cuda.Event | None]:
        batch = split(next(batches))
        if not copier:
            return batch, None
        microbatches, copied = copier.copy(batch.microbatches)
        return batch._replace(microbatches=microbatches), copied

    with contextlib.closing(prefetch(take, itertools.count(), threads=1, most=AHEAD)) as taken:
        for batch, copied in taken:
            if copier and copied:
                copier.receive(batch.microbatches, copied)
            yield batch
