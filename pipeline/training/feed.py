"""Feed a device: split and collate each batch, and copy it to the device, while the device computes the one before."""

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


class FedBatch(NamedTuple):
    """A local batch that was split into microbatches."""

    local: LocalBatch
    microbatches: Sequence[Any]
    amounts: Sequence[Mapping[str, float]]
    """Of each microbatch, counted on the host: `Objective.amounts`."""


def feed(batches: Iterator[LocalBatch], prepare: Callable[[LocalBatch], FedBatch], device: str) -> Generator[FedBatch]:
    """Yield each batch as `prepare` makes it, with its microbatches on the device.

    For an asynchronous device one thread does that a batch ahead. Where the device's memory does not hold the next
    batch yet, its microbatches stay on the host. Close it before `batches`.
    """
    if device not in ASYNCHRONOUS:
        yield from map(prepare, batches)
        return
    copier = DeviceCopier() if device == "cuda" else None

    def take(_: int) -> tuple[FedBatch, torch.cuda.Event | None]:
        fed = prepare(next(batches))
        if not copier:
            return fed, None
        microbatches, copied = copier.copy(fed.microbatches)
        return fed._replace(microbatches=microbatches), copied

    with contextlib.closing(prefetch(take, itertools.count(), threads=1, most=AHEAD)) as taken:
        for fed, copied in taken:
            if copier and copied:
                copier.receive(fed.microbatches, copied)
            yield fed
