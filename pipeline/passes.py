"""The passes of a step: forward and backward through one process's share of the batch, in pieces that memory holds.

A device that runs out of memory costs its passes and not the training: they are done again in smaller pieces, whose
gradients add up to the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from pipeline.artifacts import WORK, read_json, write_json
from pipeline.augment import generator
from pipeline.errors import ConfigError, DataError, Stopped
from pipeline.job import Job, Share
from pipeline.machine import Choice
from pipeline.team import Team

TOTAL = "the combined loss"
FITTED = "images_per_pass.json"
"""In `work`: how a process that can tell nobody else tells the next attempt that memory ran out."""


class Found(NamedTuple):
    """What a process tells the others of its passes.

    `keys`: its images. `sums`: by loss, its sum over the images of the passes that had it, and their number.
    `graded`: whether each parameter has a gradient. `most`: how many images at once memory held.
    """

    keys: list[str]
    sums: dict[str, tuple[float, int]]
    graded: list[bool]
    most: int


class Passes:
    """One process's passes. Gradients are left in the parameters: the process's part of the batch's mean gradient."""

    def __init__(self, job: Job, choice: Choice, team: Team) -> None:
        self.job, self.choice, self.team, self.module = job, choice, team, job.objective
        batch, self.fewest = job.config.batch, job.config.batch // team.count
        if not self.fewest:
            raise ConfigError(f"{job.name}: a batch of {batch} images is too small for {team.count} processes.")
        self.largest = -(-batch // team.count)
        self.most = -(-self.largest // min(job.config.accumulate, self.fewest))
        """Images in a pass, as configured."""
        self.meet = team.count > 1 and any(isinstance(part, nn.SyncBatchNorm) for part in self.module.modules())
        """Whether passes wait for each other's; then no word reaches the others before all are done."""

    def pieces(self, most: int) -> int:
        """Into how many passes a share is cut, of at most `most` images; every process has as many."""
        return min(-(-self.largest // most), self.fewest)

    def run(self, share: Share, step: int, most: int) -> Found:
        """Forward and backward through the share, at most `most` images at once, fewer if memory asks for it.

        Raises DataError with step and keys if the loss is not finite, ConfigError if memory does not hold one image.
        """
        while True:
            sums = self._attempt(share, step, self.pieces(most))
            if sums is not None:
                graded = [parameter.grad is not None for parameter in self.module.parameters()]
                return Found(share.keys, sums, graded, most)
            if most == 1:
                self._refuse(step)
            most = -(-most // 2)
            if self.meet:
                self._leave_word(step, most)

    def _attempt(self, share: Share, step: int, pieces: int) -> dict[str, tuple[float, int]] | None:
        """The losses, or None if memory ran out: then nothing has changed."""
        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        torch.manual_seed(int(generator(self.job.seed, step, self.team.rank).integers(2**63)))
        try:
            return self._passes(share.cut(pieces), step)
        except torch.OutOfMemoryError:
            pass  # what its frames hold is free only when they are gone
        self.module.zero_grad(set_to_none=True)
        for name, buffer in self.module.named_buffers():
            buffer.copy_(before[name])
        torch.cuda.empty_cache()
        return None

    def _passes(self, pieces: Sequence[Any], step: int) -> dict[str, tuple[float, int]]:
        sums: dict[str, tuple[float, int]] = {}
        for piece in pieces:
            with self.choice.autocast():
                total, losses = self.module(self.team.fabric.to_device(piece))
            self.check(total, "loss", step, piece.keys)
            images = len(piece.keys)
            (total * (images / self.job.config.batch)).backward()
            for name, loss in {**losses, TOTAL: total}.items():
                before, seen = sums.get(name, (0.0, 0))
                sums[name] = (before + float(loss.detach()) * images, seen + images)
        return sums

    def check(self, value: Tensor, what: str, step: int, keys: Sequence[str]) -> None:
        """Raise DataError, naming step and images, unless the value is finite."""
        if not bool(value.isfinite()):
            raise DataError(
                f"{self.job.name}: the {what} is {float(value.detach())} at step {step}. "
                f"Images of the batch: {', '.join(keys)}. A smaller lr, or leaving these images out, may help."
            )

    def _refuse(self, step: int) -> NoReturn:
        raise ConfigError(
            f"{self.job.name}: the device's memory does not hold a pass on one image (step {step}). A smaller batch or "
            "more accumulate can't help: set a smaller image_size, width or backbone."
        )

    def _leave_word(self, step: int, most: int) -> NoReturn:
        """End this process, and with it the others, which wait inside a pass; the next attempt begins with `most`."""
        (self.job.out / WORK).mkdir(parents=True, exist_ok=True)
        write_json(self.job.out / WORK / FITTED, {"images": most})
        raise Stopped(
            f"{self.job.name} ran out of the device's memory at step {step}. Run the same command again: it goes on "
            f"with at most {most} images in a pass."
        )

    def word(self) -> int:
        """Images in a pass, as configured or as an attempt before this one left word."""
        path = self.job.out / WORK / FITTED
        return min(self.most, read_json(path)["images"]) if path.exists() else self.most
