"""Forward and backward passes of one step: this process's part of the batch, in microbatches that memory holds.

If the device runs out of memory, the passes of the step are done again in smaller microbatches, and the training goes
on. Losses are means over labels or pixels, of which one microbatch may have many and another none: each contributes by
its share of them, so that the gradients of all microbatches, in all processes, add up to that of the whole batch, but
for batch statistics, and for losses that compare the images of a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from pipeline.data.augment import seeded_generator
from pipeline.data.stream import LocalBatch
from pipeline.errors import ConfigError, DataError, OutOfMemory
from pipeline.recipe.base import FitConfig
from pipeline.steps.artifact import WORK, read_json, write_json
from pipeline.steps.runtime import Runtime
from pipeline.training.autotune import ComputeConfig
from pipeline.training.device import allocation_failures, move_to_device
from pipeline.training.device_prefetch import SplitBatch
from pipeline.training.objective import TrainingJob
from pipeline.training.process_group import ProcessGroup
from pipeline.training.taken_step import TOTAL, PassResult, sum_by_key

LIMIT_FILE = "images_per_pass.json"
"""In `work`: written by a process that runs out of memory while the others wait inside a pass, before it exits; the
next attempt starts with smaller microbatches. It is not in the training state: only rank 0 writes that, and it
waits inside a pass too."""
NEVER_OUT_OF_MEMORY = ("cpu",)
"""Devices that never raise OutOfMemoryError: the system ends a process that wants too much."""
OUT_OF_MEMORY_ADVICE = (
    "Set a smaller image_size, backbone or (student, teacher) width, or fewer processes; a smaller batch or more "
    "accumulate can't help."
)


class StepReport(NamedTuple):
    """A process's report to the others on its passes in a step."""

    has_gradient: list[bool]
    """For each parameter."""
    limit: int
    """Images that memory held at once."""


class MicrobatchRunner:
    """Runs one process's passes. They leave its part of the batch's mean gradient in the parameters."""

    def __init__(self, job: TrainingJob, compute: ComputeConfig, group: ProcessGroup, runtime: Runtime) -> None:
        self.job, self.compute, self.group, self.runtime = job, compute, group, runtime
        batch, self.smallest = job.config.batch, job.config.batch // group.world_size
        if not self.smallest:
            raise ConfigError(f"{job.name}: a batch of {batch} images is too small for {group.world_size} processes.")
        self.largest = -(-batch // group.world_size)
        self.limit = images_per_pass(job.config, group.world_size)
        """Images in a microbatch, as configured."""
        self.scaler = torch.amp.GradScaler(compute.device, enabled=compute.precision == "fp16")
        """Multiplies losses, and so gradients, which float16 would round to zero."""
        self.synchronized = group.world_size > 1 and (
            job.objective.communicates
            or any(isinstance(module, nn.SyncBatchNorm) for module in job.objective.modules())
        )
        """Passes wait for those of the other processes, which then hear nothing from this one until all are done."""

    def count(self, limit: int) -> int:
        """Return into how many microbatches of at most `limit` images the largest local batch is split.

        If passes are synchronised, every process has so many.
        """
        count = -(-self.largest // limit)
        return min(count, self.smallest) if self.synchronized else count

    def split(self, local: LocalBatch, limit: int) -> SplitBatch:
        """Split a local batch into microbatches of at most `limit` images."""
        microbatches = local.split(self._count_of(local, limit))
        return SplitBatch(local, microbatches, [self.job.objective.amounts(microbatch) for microbatch in microbatches])

    def take_batch(self, batch: SplitBatch, limit: int) -> Mapping[str, float]:
        """Take the next batch; return by name the amounts (images, labels or pixels) that its losses average over."""
        is_split_so = len(batch.microbatches) == self._count_of(batch.local, limit)
        self._batch = batch if is_split_so else self.split(batch.local, limit)  # the limit fell after it was split
        return sum_by_key(self._batch.amounts)

    def _count_of(self, local: LocalBatch, limit: int) -> int:
        return min(self.count(limit), len(local.keys))

    def run(self, amounts: Mapping[str, float], step: int, limit: int) -> tuple[list[PassResult], StepReport]:
        """Run forward and backward passes on the loaded batch, at most `limit` images at once, fewer if memory demands.

        `amounts` are those of the whole batch, in all processes. Returns the outcomes of the passes, and the report on
        them. Raises ConfigError if memory does not hold one image.
        """
        while True:
            passes = self._attempt(amounts, step)
            if passes is not None:
                has_gradient = [parameter.grad is not None for parameter in self.job.objective.parameters()]
                return passes, StepReport(has_gradient, limit)
            smaller = -(-limit // 2)
            if self.count(smaller) == self.count(limit):
                images = max(len(microbatch.keys) for microbatch in self._batch.microbatches)
                raise ConfigError(
                    f"{self.job.name}: the device's memory does not hold a pass on "
                    f"{'one image' if images == 1 else f'{images} images'} (step {step + 1}). {OUT_OF_MEMORY_ADVICE}"
                )
            limit = smaller
            if self.synchronized:
                self._save_limit(step, limit)
            self._batch = self.split(self._batch.local, limit)

    def _attempt(self, amounts: Mapping[str, float], step: int) -> list[PassResult] | None:
        """Run all passes; None if memory ran out: then gradients, buffers and random state are as before."""
        buffers = self._copy_buffers()
        self._seed(step)
        try:
            with allocation_failures():
                pairs = zip(self._batch.microbatches, self._batch.amounts, strict=True)
                return [self._pass(microbatch, own, amounts) for microbatch, own in pairs]
        except torch.OutOfMemoryError:
            pass  # leave the handler first: the error's frames still hold memory
        self.job.objective.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)
        torch.cuda.empty_cache()
        return None

    def _seed(self, step: int) -> None:
        """Seed the generators of the CPU and the device: `torch.manual_seed` spends 5 ms on devices that are absent."""
        seed = int(seeded_generator(self.job.seed, step, self.group.rank).integers(2**63))
        torch.default_generator.manual_seed(seed)
        if self.compute.device != "cpu":
            torch.get_device_module(self.compute.device).manual_seed(seed)

    def _copy_buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Return what a pass changes, with copies; none where memory can't run out, as copies of queues take time."""
        if self.compute.device in NEVER_OUT_OF_MEMORY:
            return []
        return [(buffer, buffer.clone()) for buffer in self.job.objective.restored_buffers()]

    def _pass(self, microbatch: Any, own: Mapping[str, float], amounts: Mapping[str, float]) -> PassResult:
        shares = {name: amount / (amounts[name] or 1) for name, amount in own.items()}
        with self.compute.autocast(), self._explain_batch_norm(len(microbatch.keys)):
            total, losses = self.job.objective(move_to_device(microbatch, self.compute.device), shares)
        self.scaler.scale(total).backward()
        return PassResult(microbatch.keys, {**losses, TOTAL: total.detach()})

    @contextlib.contextmanager
    def _explain_batch_norm(self, images: int) -> Iterator[None]:
        """Raise ConfigError if a pass leaves a batch norm a single value per channel."""
        try:
            yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            config = self.job.config
            raise ConfigError(
                f"{self.job.name}: batch norm needs several values per channel, and a pass on {images} small image "
                f"gives one (batch: {config.batch}, accumulate: {config.accumulate}, processes: "
                f"{self.group.world_size}). Set a larger batch, less accumulate, a larger image_size, or a backbone "
                "without batch norm."
            ) from error

    def _save_limit(self, step: int, limit: int) -> NoReturn:
        """End this process, and with it the others, which wait inside a pass; the next attempt begins with `limit`."""
        path = self.job.out / WORK / LIMIT_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"images": limit})
        self.runtime.root.upload(path)
        raise OutOfMemory(
            f"{self.job.name} ran out of the device's memory at step {step + 1}. Run the same command again: it goes "
            f"on with at most {limit} images in a pass."
        )

    def saved_limit(self) -> int:
        """Return the images in a microbatch, as configured or as an earlier attempt saved them when memory ran out."""
        path = self.job.out / WORK / LIMIT_FILE
        if not path.exists():
            return self.limit
        match read_json(path):
            case {"images": int(images)} if images > 0:
                return min(self.limit, images)
            case other:
                raise DataError(f"{path}: holds {other!r:.40}, and no number of images. Delete it.")


def images_per_pass(config: FitConfig, processes: int) -> int:
    """Return the images in the largest microbatch of a process, as configured: if memory runs out, it has fewer."""
    smallest, largest = config.batch // processes, -(-config.batch // processes)
    return -(-largest // max(1, min(config.accumulate, smallest)))
