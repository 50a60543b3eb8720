"""Feed a device: split and collate each batch, and copy it to the device, while the device computes the one before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from pipeline.data.prefetch import prefetch
from pipeline.data.stream import LocalBatch
from pipeline.training.device import map_tensors

ASYNCHRONOUS = ("cuda",)
"""Devices that compute while the host goes on; all others compute on the host's cores, which a thread would take."""
AHEAD = 2
"""Batches on an asynchronous device: the one it computes, and the next."""


class FedBatch(NamedTuple):
    """A local batch that was split into microbatches."""

    local: LocalBatch
    microbatches: Sequence[Any]
    amounts: Mapping[str, float]
    """Of all microbatches together: `Objective.amounts`."""


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
        return copier.copy(fed) if copier else (fed, None)

    for fed, copied in prefetch(take, itertools.count(), threads=1, most=AHEAD):
        if copier and copied:
            copier.receive(fed, copied)
        yield fed


class DeviceCopier:
    """Copies microbatches to this process's CUDA device on a stream of their own, beside what the device computes."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def copy(self, fed: FedBatch) -> tuple[FedBatch, torch.cuda.Event | None]:
        """Start to copy the microbatches, from any thread; return them with the event of the copy's end.

        If memory runs out, they are on the host, and there is no event.
        """
        try:
            with torch.cuda.stream(self.stream):  # this also makes its device the thread's
                microbatches = map_tensors(
                    fed.microbatches, lambda tensor: _pinned(tensor).to(self.stream.device, non_blocking=True)
                )
                return fed._replace(microbatches=microbatches), self.stream.record_event()
        except torch.OutOfMemoryError:
            return fed, None

    def receive(self, fed: FedBatch, copied: torch.cuda.Event) -> None:
        """Let what the device is given from now on wait for the copy, and keep its memory until all that is done."""
        consumer = torch.cuda.current_stream()
        consumer.wait_event(copied)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(consumer)
            return tensor

        map_tensors(fed.microbatches, keep)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_cuda else tensor.pin_memory()
