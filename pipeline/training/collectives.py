"""Collectives inside a pass: what losses that compare images need of the other processes.

With one process they send nothing. With several, every process calls each of them in the same order, so an objective
that uses them says so (`Objective.communicates`), and a process that fails inside a pass ends the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn

from pipeline.training.process_group import ProcessGroup, lost_peer

Module = TypeVar("Module", bound=nn.Module)


class Gathered(NamedTuple):
    """Rows (N, ...) of all processes, by rank."""

    rows: Tensor
    own: slice
    """Those of this process."""


class Collectives:
    """Let the passes of `world_size` processes exchange tensors; without arguments, this process is alone.

    z, own = self.collectives.all_gather(embeddings)
    loss = supcon(z, labels, temperature, own)  # its own anchors, compared with the images of all processes
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    def all_gather(self, rows: Tensor) -> Gathered:
        """Return the rows (n, ...) of all processes, of which each may have another number n, or none.

        The gradient that a process gets for its rows is the sum of those that all processes have for them. So if each
        has its part of a loss, the gradients of the parameters add up over the processes to that of the whole loss.
        """
        if self.world_size == 1:
            return Gathered(rows, slice(0, len(rows)))
        counts = _AllGather.apply(torch.tensor([len(rows)]), self).flatten().tolist()  # by gloo, which waits for no GPU
        padding = rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])  # gloo takes no tensors of several sizes
        parts = _AllGather.apply(torch.cat([rows, padding]), self)
        start = sum(counts[: self.rank])
        everyone = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        return Gathered(everyone, slice(start, start + len(rows)))

    def mean(self, rows: Tensor) -> Tensor:
        """Return the mean (K,) of the rows (n, K) float32 of all processes, without gradient."""
        if self.world_size == 1:
            return rows.detach().mean(dim=0)
        sums = torch.cat([rows.detach().sum(dim=0), rows.new_full((1,), len(rows))])
        with lost_peer():
            distributed.all_reduce(sums)
        return sums[:-1] / sums[-1]

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Overwrite a contiguous tensor, in every process, with that of the first one, and return it."""
        if self.world_size > 1:
            with lost_peer():
                distributed.broadcast(tensor, src=0)
        return tensor


class _AllGather(torch.autograd.Function):
    """Tensors of the same shape in all processes: (...) -> (world_size, ...).

    `torch.distributed.nn.functional.all_gather` is deprecated, and its successor is private and younger than the oldest
    torch that is supported.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, collectives: Collectives) -> Tensor:
        ctx.rank = collectives.rank
        tensor = tensor.contiguous()
        gathered = [torch.empty_like(tensor) for _ in range(collectives.world_size)]
        with lost_peer():
            distributed.all_gather(gathered, tensor)
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        with lost_peer():
            distributed.all_reduce(total)
        return total[ctx.rank], None


def synchronize_batch_norms(module: Module, group: ProcessGroup, device: str) -> Module:
    """Return the module with batch norms that see the images of all processes (SyncBatchNorm): on CUDA alone, and not
    if there is one process. A batch norm on the CPU sees those of its own process, for want of another kind.
    """
    from timm.layers import convert_sync_batchnorm  # noqa: PLC0415 - a recipe with stages is read without timm

    if group.world_size == 1 or device != "cuda":
        return module
    synchronized: Module = convert_sync_batchnorm(module)
    return synchronized
