"""The processes that train one network together: torch.distributed, with errors that reach every process.

torchrun starts the processes, on one machine or several (see `pipeline.steps.ranks`); most often there is one, and all
of this does nothing. They communicate between their passes through the network, and during one only where a loss or a
batch norm can't do without (`pipeline.training.collectives`): what goes wrong in one process is then known to all
before anything changes, and none waits for a message that never comes. This is why gradients are summed in one go after
the last pass, and not by DistributedDataParallel while it runs.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from pipeline.errors import ConfigError, LostPeer, MustError
from pipeline.steps import ranks
from pipeline.steps.runtime import usable_cores

TIMEOUT = datetime.timedelta(minutes=30)
"""For one message: the first process may write to a slow storage for as long, while the others wait."""
LENGTH, SHORT = 8, 8192
"""Bytes of the length of a message, and of one that goes with its length."""
T = TypeVar("T")


class ProcessGroup:
    """This process and its peers, as a context. When one process leaves it, the others raise LostPeer.

    Every method is a collective: all processes call it, or none does.
    """

    def __init__(self, device: str) -> None:
        self.rank, self.world_size, self._uses_nccl = ranks.rank(), ranks.count(), device == "cuda"
        if self.world_size > 1:
            _join(device)
            self.all_gather(None)  # afterwards no process still asks the first one for the others' addresses

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self.world_size > 1 and not (error and self._uses_nccl):  # NCCL may wait for peers, which wait inside a pass
            distributed.destroy_process_group()

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank: numbers, texts, None, or lists or mappings of these, as JSON."""
        if self.world_size == 1:
            return [value]
        with lost_peer():
            return [json.loads(text) for text in self._all_gather_bytes(json.dumps(value).encode())]

    def _all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Return the bytes of all processes. Those of a step are few, and go in one message, with their length.

        `distributed.all_gather_object` takes two for everything, the first one for the lengths.
        """
        firsts = self._all_gather_equal(len(data).to_bytes(LENGTH) + data[:SHORT].ljust(SHORT, b"\0"))
        lengths = [int.from_bytes(first[:LENGTH]) for first in firsts]
        rests = [b""] * self.world_size
        if max(lengths) > SHORT:
            rests = self._all_gather_equal(data[SHORT:].ljust(max(lengths) - SHORT, b"\0"))
        return [(first[LENGTH:] + rest)[:length] for first, rest, length in zip(firsts, rests, lengths, strict=True)]

    def _all_gather_equal(self, data: bytes) -> list[bytes]:
        """Return the bytes of all processes, which have as many each."""
        own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        gathered = [torch.empty_like(own) for _ in range(self.world_size)]
        distributed.all_gather(gathered, own)
        return [each.numpy().tobytes() for each in gathered]

    def all_gather_result(self, make: Callable[[], T]) -> list[T]:
        """Call `make` in every process and return all results, as `all_gather`. A MustError in one is raised in all."""
        outcome = _attempt(make)
        found = self.all_gather(None if isinstance(outcome, MustError) else [outcome])
        outcomes: list[T | MustError] = [each[0] if each else outcome for each in found]
        if None in found and self.world_size > 1:
            with lost_peer():
                distributed.all_gather_object(outcomes, outcome)
        return [_result(each) for each in outcomes]

    def broadcast_result(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process and return its result in all. A MustError is raised in all of them."""
        if self.world_size == 1:
            return make()
        outcomes = [_attempt(make) if ranks.is_first() else None]
        with lost_peer():
            distributed.broadcast_object_list(outcomes, src=0)
        return _result(cast(T | MustError, outcomes[0]))

    def gather(self, value: T) -> list[T] | None:
        """Return the values of all processes, by rank, in the first one, and None in the others."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size if ranks.is_first() else None
        with lost_peer():
            distributed.gather_object(value, values)
        return values

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """Replace each tensor by that of the process of this rank. Those of a call are of one dtype and device."""
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with lost_peer():
            distributed.broadcast(flat, source)
        _copy_parts(flat, tensors)

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same bits in all of them."""
        self._all_reduce(tensors, divisor=1)

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes; integers are rounded down."""
        self._all_reduce(tensors, divisor=self.world_size)

    def _all_reduce(self, tensors: Sequence[Tensor], divisor: int) -> None:
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])  # one message, because each has a fixed cost
        with lost_peer():
            distributed.all_reduce(flat)
        _copy_parts(flat.div_(divisor), tensors)


def _copy_parts(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Overwrite the tensors by the values of one that has all of theirs; their dtype and memory layout stay."""
    for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


def _attempt(make: Callable[[], T]) -> T | MustError:
    """Return what `make` returns, or the MustError that it raises."""
    try:
        return make()
    except MustError as error:
        return error


def _result(outcome: T | MustError) -> T:
    if isinstance(outcome, MustError):
        raise outcome
    return outcome


@contextmanager
def lost_peer() -> Iterator[None]:
    """Raise LostPeer if a collective fails: then another process is gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo's and NCCL's own
        raise LostPeer(
            f"Another process of this training is gone ({next(iter(str(error).splitlines()), '')})."
        ) from error


def _join(device: str) -> None:
    """Connect to the other processes: by gloo on the CPU, by NCCL on CUDA, where each has a device of its own.

    Raises ConfigError on other devices, or if this machine has fewer CUDA devices than processes.
    """
    local_count = ranks.local_count()
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"runtime.device is {device!r}: several processes train together on cpu or cuda alone.")
    if device == "cuda" and torch.cuda.device_count() < local_count:
        raise ConfigError(
            f"torchrun started {local_count} processes on this machine, which has {torch.cuda.device_count()} CUDA "
            "devices: start no more than one for each (--nproc-per-node)."
        )
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it, other launchers may not
        torch.set_num_threads(max(1, usable_cores() // local_count))
    own = torch.device("cuda", ranks.local_rank()) if device == "cuda" else None
    if own:
        torch.cuda.set_device(own)  # "cuda" is this device from here on
    with lost_peer():
        backends = "cpu:gloo,cuda:nccl" if own else "gloo"  # messages by gloo: they don't wait for the device
        distributed.init_process_group(backends, timeout=TIMEOUT, device_id=own)
