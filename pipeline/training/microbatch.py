"""The passes of a step: forward and backward through one process's share of the batch, in pieces that memory holds.

A device that runs out of memory costs its passes and not the training: they are done again in smaller pieces. Losses
are means over labels or pixels, of which one piece may have many and another none: each piece counts by its share of
them, so that the gradients of all pieces, in all processes, add up to that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from pipeline.data.augment import generator
from pipeline.data.stream import Share
from pipeline.errors import ConfigError, DataError, OutOfMemory
from pipeline.steps.artifact import WORK, read_json, write_json
from pipeline.steps.runtime import Runtime
from pipeline.training.autotune import ComputeConfig
from pipeline.training.objective import TrainingJob
from pipeline.training.process_group import ProcessGroup

TOTAL = "the combined loss"
FITTED = "images_per_pass.json"
"""In `work`: how a process that can tell nobody else tells the next attempt that memory ran out. The state can't: the
first process alone writes it, and does not come to it."""
SURE = ("cpu",)
"""Devices that never raise OutOfMemoryError: where memory is the system's, it ends the process that wants too much."""
SMALLER = (
    "A smaller batch or more accumulate can't help: set a smaller image_size, width or backbone, or fewer processes."
)


class StepResult(NamedTuple):
    """What a process tells the others of its passes.

    `keys`: its images. `parts`: by loss, its part of that of the whole batch. `graded`: whether each parameter has a
    gradient. `most`: how many images at once memory held.
    """

    keys: list[str]
    parts: dict[str, float]
    graded: list[bool]
    most: int


class MicrobatchRunner:
    """One process's passes. Gradients are left in the parameters: the process's part of the batch's mean gradient."""

    def __init__(self, job: TrainingJob, choice: ComputeConfig, group: ProcessGroup, runtime: Runtime) -> None:
        self.job, self.choice, self.group, self.runtime = job, choice, group, runtime
        batch, self.fewest = job.config.batch, job.config.batch // group.count
        if not self.fewest:
            raise ConfigError(f"{job.name}: a batch of {batch} images is too small for {group.count} processes.")
        self.largest = -(-batch // group.count)
        self.most = -(-self.largest // min(job.config.accumulate, self.fewest))
        """Images in a pass, as configured."""
        self.meet = group.count > 1 and any(isinstance(part, nn.SyncBatchNorm) for part in job.objective.modules())
        """Whether passes wait for each other's; then no word reaches the others before all are done."""

    def pieces(self, most: int) -> int:
        """Into how many passes the largest share is cut, of at most `most` images; where they meet, all are."""
        pieces = -(-self.largest // most)
        return min(pieces, self.fewest) if self.meet else pieces

    def take(self, share: Share, most: int) -> dict[str, float]:
        """The share to go through next, and by name how much of what losses are means over is in it."""
        self._share, self._pieces = share, self._cut(share, most)
        return added(self.job.objective.amounts(piece) for piece in self._pieces)

    def _cut(self, share: Share, most: int) -> Sequence[Any]:
        return share.cut(min(self.pieces(most), len(share.keys)))

    def run(self, whole: Mapping[str, float], step: int, most: int) -> StepResult:
        """Forward and backward through what was taken, at most `most` images at once, fewer if memory asks for it.
        `whole`: the amounts in the whole batch.

        Raises DataError with step and keys if the loss is not finite, ConfigError if memory does not hold one image.
        """
        while True:
            parts = self._attempt(whole, step)
            if parts is not None:
                graded = [parameter.grad is not None for parameter in self.job.objective.parameters()]
                return StepResult(self._share.keys, parts, graded, most)
            fewer = -(-most // 2)
            if self.pieces(fewer) == self.pieces(most):
                self._refuse(step)
            most = fewer
            if self.meet:
                self._save_limit(step, most)
            self._pieces = self._cut(self._share, most)

    def _attempt(self, whole: Mapping[str, float], step: int) -> dict[str, float] | None:
        """The losses, or None if memory ran out: then nothing has changed."""
        kept = self._kept()
        torch.manual_seed(int(generator(self.job.seed, step, self.group.rank).integers(2**63)))
        try:
            return added(self._pass(piece, whole, step) for piece in self._pieces)
        except torch.OutOfMemoryError:
            pass  # what its frames hold is free only when they are gone
        self.job.objective.zero_grad(set_to_none=True)
        for buffer, before in kept:
            buffer.copy_(before)
        torch.cuda.empty_cache()
        return None

    def _kept(self) -> list[tuple[Tensor, Tensor]]:
        """Every buffer and what is in it now, to go back to. None where memory can't run out: a queue of features or a
        memory of all images takes its time to copy.
        """
        if self.choice.device in SURE:
            return []
        return [(buffer, buffer.clone()) for buffer in self.job.objective.buffers()]

    def _pass(self, piece: Any, whole: Mapping[str, float], step: int) -> dict[str, float]:
        shares = {name: amount / max(whole[name], 1) for name, amount in self.job.objective.amounts(piece).items()}
        with self.choice.autocast():
            total, losses = self.job.objective(move_data_to_device(piece, self.choice.device), shares)
        self.check(total, "loss", step, piece.keys)
        total.backward()
        return {name: float(loss.detach()) for name, loss in {**losses, TOTAL: total}.items()}

    def check(self, value: Tensor, what: str, step: int, keys: Sequence[str]) -> None:
        """Raise DataError, naming step and images, unless the value is finite."""
        if not bool(value.isfinite()):
            raise DataError(
                f"{self.job.name}: the {what} is {float(value.detach())} at step {step + 1}. "
                f"Images of the batch: {', '.join(keys)}. A smaller lr, or leaving these images out, may help."
            )

    def _refuse(self, step: int) -> NoReturn:
        images = max(len(piece.keys) for piece in self._pieces)
        raise ConfigError(
            f"{self.job.name}: the device's memory does not hold a pass on "
            f"{'one image' if images == 1 else f'{images} images'} (step {step + 1}). {SMALLER}"
        )

    def _save_limit(self, step: int, most: int) -> NoReturn:
        """End this process, and with it the others, which wait inside a pass; the next attempt begins with `most`."""
        path = self.job.out / WORK / FITTED
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"images": most})
        self.runtime.keep(path)
        raise OutOfMemory(
            f"{self.job.name} ran out of the device's memory at step {step + 1}. Run the same command again: it goes "
            f"on with at most {most} images in a pass."
        )

    def saved_limit(self) -> int:
        """Images in a pass, as configured or as an attempt before this one left word."""
        path = self.job.out / WORK / FITTED
        return min(self.most, read_json(path)["images"]) if path.exists() else self.most


def added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums
