"""The processes that train one network together, started by torchrun on one machine or several; most often it is one.

They meet between their passes through the network, not during one: what goes wrong in one process is then known to all
before anything changes, and none waits for a word that never comes. Gradients are therefore summed in one go after the
last pass, not while it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch import Tensor, distributed

from pipeline.errors import ConfigError, LostPeer, MustError
from pipeline.steps import ranks

Thing = TypeVar("Thing")


class ProcessGroup:
    """This process and its peers: a context; who leaves it leaves the others for good, and they raise LostPeer."""

    def __init__(self, device: str) -> None:
        self.rank, self.count = ranks.rank(), ranks.count()
        self.fabric = _join(device) if self.count > 1 else _alone(device)

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.count > 1:
            distributed.destroy_process_group()

    def all_gather(self, mine: Thing) -> list[Thing]:
        """What every process has to tell, by rank. All of them call this, or none."""
        if self.count == 1:
            return [mine]
        told: list[Thing] = [mine] * self.count
        with _meeting():
            distributed.all_gather_object(told, mine)
        return told

    def gather_made(self, make: Callable[[], Thing]) -> list[Thing]:
        """What every process makes, by rank. An error of this project in one is an error in all."""
        mine: Thing | MustError
        try:
            mine = make()
        except MustError as error:
            mine = error
        made: list[Thing] = []
        for each in self.all_gather(mine):
            if isinstance(each, MustError):
                raise each
            made.append(each)
        return made

    def broadcast_made(self, make: Callable[[], Thing]) -> Thing:
        """What the first process makes, in all of them. Its error is an error in all of them."""
        if self.count == 1:
            return make()
        made: Thing | MustError | None = None
        if ranks.is_first():
            try:
                made = make()
            except MustError as error:
                made = error
        with _meeting():
            found = cast(Thing | MustError, self.fabric.broadcast(made))
        if isinstance(found, MustError):
            raise found
        return found

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same bits in all of them."""
        self._reduce(tensors, 1)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes; whole numbers are rounded down."""
        self._reduce(tensors, self.count)

    def _reduce(self, tensors: Sequence[Tensor], parts: int) -> None:
        """The sum over the processes, divided; in one go, as every message has its price."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _meeting():
            distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.div_(parts).split([each.numel() for each in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))  # each keeps its own type and memory layout


@contextmanager
def _meeting() -> Iterator[None]:
    """LostPeer if another process does not come, as it is gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo's and NCCL's own
        raise LostPeer(
            f"Another process of this training is gone ({next(iter(str(error).splitlines()), '')})."
        ) from error


def _alone(device: str) -> Fabric:
    """One process, whatever cluster it runs on."""
    return Fabric(accelerator=device, devices=1, precision="32-true", plugins=[LightningEnvironment()])


def _join(device: str) -> Fabric:
    """Meet the other processes: over gloo on the CPU, over NCCL on CUDA, where each has a device of its own.

    Raises ConfigError if this machine has not as many.
    """
    here = ranks.local_count()
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"runtime.device is {device!r}: several processes train together on cpu or cuda alone.")
    if device == "cuda" and torch.cuda.device_count() < here:
        raise ConfigError(
            f"torchrun started {here} processes on this machine, which has {torch.cuda.device_count()} CUDA devices: "
            "start no more than one for each (--nproc-per-node)."
        )
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)  # their greetings are no news
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=ranks.count() // here,
        strategy="ddp",
        precision="32-true",
        plugins=[TorchElasticEnvironment()],
    )
    with _meeting():
        fabric.launch()
    return fabric
