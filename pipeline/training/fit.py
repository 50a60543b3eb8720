"""The one training loop: `fit` trains teachers, the student, self-supervised stages, fine-tuning and a linear probe.

What is trained, an `Objective`, computes its losses. The loop owns the rest:

* Precision: forward passes run in float32, bfloat16 or float16, as `ComputeConfig` says; weights and optimiser stay in
  float32. In float16 losses are scaled, and a step whose gradient overflows is left out.
* Accumulation: a batch is split into microbatches, into smaller ones where the device runs out of memory. Their
  gradients add up to that of the batch, up to batch statistics, if the losses are means over labels or images.
* Clipping: the norm of the batch's gradient is limited.
* Non-finite values: a loss or gradient that is not finite ends the training, with step and images, before it reaches
  a saved state.
* No waiting: batches are copied to a GPU while it computes, and it has the next step before its losses are read.
* EMA: the moving average of the weights, if asked for, is what a training returns.
* Validation: if asked for, the network is measured on held-out images on the way, its best weights are what a training
  returns, and it ends early where it no longer gets better.
* Resume: the state is saved on the way and at a stop. A training goes on from it in the middle of an epoch, and ends
  with the same weights as one that was never stopped.
* Processes: all of them share each batch, and an error or a stop in one ends all. Their number can change between
  attempts: it changes no more than rounding, batch statistics, and what passes draw at random. If asked for, each keeps
  a part of the optimiser's state alone.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from pipeline.errors import ConfigError, DataError, MustError, error_context, first_line
from pipeline.models.weight_loading import non_finite_weights
from pipeline.steps import ranks
from pipeline.steps.runtime import Runtime
from pipeline.training import device_prefetch
from pipeline.training.autotune import ComputeConfig
from pipeline.training.device import move_to_device
from pipeline.training.device_prefetch import SplitBatch
from pipeline.training.microbatch import OUT_OF_MEMORY_ADVICE, MicrobatchRunner, StepReport
from pipeline.training.objective import TrainingJob
from pipeline.training.optimizer import build_optimizer, lr_factor, match_memory_format, set_weight_decay, weight_decay
from pipeline.training.process_group import ProcessGroup
from pipeline.training.progress import TrainingProgress
from pipeline.training.shards import OptimizerShards
from pipeline.training.state import TrainingFiles, state_path
from pipeline.training.taken_step import TOTAL, PassResult, TakenStep, sum_by_key
from pipeline.training.validation import Validator

MOST_LEFT_OUT = 20
"""Steps in a row that float16 may leave out: each halves the scale of the losses, which begins at 65,536."""


class MicrobatchLimit(NamedTuple):
    """Memory ran out: from `step` on, local batches are split into `pieces` microbatches of at most `images` images."""

    step: int
    pieces: int
    images: int


class FitResult(NamedTuple):
    """The course of a training."""

    limits: list[MicrobatchLimit]
    """What was done each time that memory ran out."""
    seconds: float
    """Wall clock of all attempts, each up to its last state."""
    earlier: float
    """Wall clock of the attempts before the last one."""
    steps: int
    """Optimiser steps that were taken."""
    validation: dict[str, Any] | None = None
    """What validations found: `Validator.counts`; None if there were none."""

    def counts(self) -> dict[str, Any]:
        """Return the entries of a manifest's counts: `training_seconds` and `steps`, and unless empty `validation`,
        `out_of_memory` and `earlier_seconds`, which are among `training_seconds`.
        """
        counts: dict[str, Any] = {"training_seconds": round(self.seconds, 2), "steps": self.steps}
        if self.validation:
            counts["validation"] = self.validation
        if self.earlier:
            counts["earlier_seconds"] = round(self.earlier, 2)
        if self.limits:
            counts["out_of_memory"] = [limit._asdict() for limit in self.limits]
        return counts


def fit(job: TrainingJob, compute: ComputeConfig, group: ProcessGroup, runtime: Runtime) -> FitResult:
    """Train `job.objective` in place, going on from the state in `job.out` if there is one.

    Leaves the averaged weights, if averaging is on, in eval mode on the device. All processes call this. The first one
    reads and writes `job.out`, and its clock is reported. Each normalises images by its own batch statistics, unless
    layers are SyncBatchNorm; running statistics are averaged over the processes.

    Raises, in all processes: DataError with step and keys if a loss or gradient is not finite; ConfigError if memory
    does not hold the network or one image; Stopped, once the state is saved, if any process was asked to stop.
    """
    try:
        with contextlib.closing(_Trainer(job, compute, group, runtime)) as trainer:
            trainer.resume()
            trainer.run()
            return trainer.finish()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{job.name}: the device's memory does not hold the network and what its optimiser keeps. "
            f"{OUT_OF_MEMORY_ADVICE}"
        ) from error


class _Trainer:
    """The moving parts of one `fit`: model, optimiser, schedule, average, position."""

    def __init__(self, job: TrainingJob, compute: ComputeConfig, group: ProcessGroup, runtime: Runtime) -> None:
        self.job, self.group, self.runtime = job, group, runtime
        self.model = compute.place(job.objective.train())
        self.microbatches = MicrobatchRunner(job, compute, group, runtime)
        self.scaler = self.microbatches.scaler
        self.optimizer = build_optimizer(self.model, job.config, self.scaler.is_enabled())
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.shards = OptimizerShards(self.parameters, group, group.world_size if runtime.shard_optimizer else 1)
        factor = lambda step: lr_factor(step, job.steps, job.config.warmup, job.config.drops)  # noqa: E731
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.ema = ModelEmaV3(self.model, job.config.ema, use_warmup=True) if job.config.ema else None
        self.running_statistics = _running_statistics(self.model)
        self.validator = Validator(job.validation, job.steps) if job.validation else None
        self.files = TrainingFiles(job.name, job.out) if ranks.is_first() else None
        """Of the first process; None in the others, which write nothing."""
        self.step, self.limits = 0, list[MicrobatchLimit]()
        self.unread = collections.deque[TakenStep]()
        """Steps that were taken, and whose losses were not read yet."""
        self.most_unread = int(compute.device in device_prefetch.ASYNCHRONOUS and not job.objective.observes)
        self.seconds = self.earlier = 0.0
        self.waited = 0.0
        """Seconds that this process has waited for batches so far."""
        self.left_out = 0
        """Steps in a row, up to the last one that was read, that float16 has left out."""

    @property
    def limit(self) -> int:
        """Images in a microbatch."""
        return min([self.microbatches.limit, *(limit.images for limit in self.limits)])

    def resume(self) -> None:
        """Go on from the state on disk, if there is one; all processes begin with what the first has."""
        state = self.group.broadcast_result(self._initial_state)
        if state:
            try:
                self._load_state_dict(state)
            except torch.OutOfMemoryError:
                raise
            except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
                raise DataError(
                    f"{state_path(self.job.out)}: not a state of this training ({type(error).__name__}: "
                    f"{first_line(error)}). Delete it to start {self.job.name} over."
                ) from error
        self._lower_limit(self.group.broadcast_result(self.microbatches.saved_limit))

    def _initial_state(self) -> dict[str, Any] | None:
        assert self.files
        state = self.files.load()
        if state is None and self.group.world_size > 1:
            state = move_to_device(self._state_dict(self.optimizer.state_dict()), "cpu")
        return state

    def _state_dict(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """Return the state to go on from, with that of the optimiser."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else {},
            "validation": self.validator.state_dict() if self.validator else {},
            "cuts": self.limits,
            "seconds": self.seconds,
        }

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        if type(state["step"]) is not int or not 0 <= state["step"] <= self.job.steps:
            raise ValueError(f"step {state['step']!r:.40} of {self.job.steps}")
        weights = (state["model"], state["ema"], state["validation"].get("weights", {}))
        bad = non_finite_weights(itertools.chain.from_iterable(each.items() for each in weights))
        if bad:
            raise ValueError(f"{bad[0]} is not finite")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(self.shards.select(state["optimizer"]))
        match_memory_format(self.optimizer)
        self.schedule.load_state_dict(state["schedule"])
        if state.get("scaler"):  # of float16 alone
            self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if self.validator:
            self.validator.load_state_dict(state["validation"])
        if any(pieces < 1 or images < 1 for _, pieces, images in state["cuts"]):
            raise ValueError(f"microbatches {state['cuts']!r:.40}")
        self.step, self.limits = state["step"], [MicrobatchLimit(*limit) for limit in state["cuts"]]
        self.seconds = self.earlier = float(state.get("seconds", 0.0))  # older states don't know theirs

    def _lower_limit(self, limit: int) -> None:
        """Put at most `limit` images into a microbatch, from the next step on."""
        if limit < self.limit:
            self.limits.append(MicrobatchLimit(self.step + 1, self.microbatches.count(limit), limit))

    def run(self) -> None:
        """Train from the current step to the last."""
        split = lambda local: self.microbatches.split(local, self.limit)  # noqa: E731
        with (
            contextlib.closing(self.job.stream.batches(self.step)) as batches,
            contextlib.closing(
                device_prefetch.prefetch_to_device(batches, split, self.microbatches.compute.device)
            ) as prefetched,
        ):
            self._train(prefetched)

    def _train(self, batches: Iterator[SplitBatch]) -> None:
        started = saved = time.monotonic()
        self.read_at = time.perf_counter()
        self.progress = TrainingProgress(self.job, self.runtime, self.step)
        while self.step < self.job.steps and not (self.validator and self.validator.is_over):
            self.unread.append(self._train_step(batches))
            self.step += 1
            is_read_at_once = self._is_validation_due(self.step) or self.step == self.job.steps
            self._read_steps(0 if is_read_at_once else self.most_unread)
            self.seconds = self.earlier + time.monotonic() - started
            is_save_due = time.monotonic() - saved > self.runtime.checkpoint_s
            wishes = self.group.all_gather([self.runtime.stop.is_set(), is_save_due])
            if any(stop for stop, _ in wishes):
                self._stop()
            if wishes[0][1]:  # the first process writes, and its clock counts
                self._save()
                saved = time.monotonic()

    def _train_step(self, batches: Iterator[SplitBatch]) -> TakenStep:
        """Give the device one optimiser step on the next batch."""
        passes, reports = self._forward_backward(batches)
        self._lower_limit(min(report.limit for report in reports))
        self._all_reduce_gradients(reports)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.job.config.clip or math.inf)  # inf: measured, not clipped
        lr = max(float(rate) for rate in self.schedule.get_last_lr())
        set_weight_decay(self.optimizer, weight_decay(self.step, self.job.steps, self.job.config))
        self.shards.drop_gradients()
        self.scaler.step(self.optimizer)
        self.shards.broadcast()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.group.all_reduce_mean(self.running_statistics)  # a process may never have seen a head's labels
        if self.ema:
            self.ema.update(self.model, self.step)
        return TakenStep(self.step + 1, passes, norm, {"lr": lr, "passes": self.microbatches.count(self.limit)})

    def _read_steps(self, most: int = 0) -> None:
        """Read, check and log the steps that were taken, but for the last `most`."""
        while len(self.unread) > most:
            taken = self.unread.popleft()
            losses = self._read_losses(taken)
            self.job.objective.observe(losses)
            self._log({"step": taken.number, "loss": losses.pop(TOTAL), "losses": losses, **taken.line})

    def _read_losses(self, taken: TakenStep) -> dict[str, float]:
        """Return the losses of a step, of all processes together; raise DataError if one or the gradient is not finite.

        A gradient is the same in all processes: they agree on whether it is finite.
        """
        is_finite = math.isfinite(taken.norm)
        self.left_out = 0 if is_finite else self.left_out + 1
        with error_context(self.job.name):
            losses = self.group.all_gather_result(taken.losses)
            if not is_finite and not (self.scaler.is_enabled() and self.left_out <= MOST_LEFT_OUT):
                keys = itertools.chain.from_iterable(self.group.all_gather(taken.keys))
                taken.check_finite(taken.norm, "gradient", list(keys))
        return sum_by_key(losses)

    def _is_validation_due(self, step: int) -> bool:
        return self.validator is not None and self.validator.is_due(step)

    def _validate(self) -> dict[str, Any]:
        """Measure the network, and return the metrics for the log. The first process measures."""
        assert self.validator
        measured = (self.ema.module if self.ema else self.model).eval()
        validation = self.validator.validation
        scores = self.group.broadcast_result(lambda: validation.score(measured, self.microbatches.compute))
        self.model.train()
        self.validator.add(self.step, scores, measured.state_dict())
        return {"validation": scores}

    def _forward_backward(self, batches: Iterator[SplitBatch]) -> tuple[list[PassResult], list[StepReport]]:
        """Run this process's passes on the next batch; return their outcomes, and the reports of all processes."""
        amounts = self.group.all_gather_result(lambda: self.microbatches.take_batch(self._next(batches), self.limit))
        passes = list[PassResult]()

        def run() -> dict[str, Any]:
            own, report = self.microbatches.run(sum_by_key(amounts), self.step, self.limit)
            passes.extend(own)
            return report._asdict()

        # synchronised passes can't report an error: the other processes wait inside a pass, and end with this one
        synchronized = self.microbatches.synchronized
        reports = self.group.all_gather(run()) if synchronized else self.group.all_gather_result(run)
        return passes, [StepReport(**report) for report in reports]

    def _next(self, batches: Iterator[SplitBatch]) -> SplitBatch:
        began = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - began
        return batch

    def _all_reduce_gradients(self, reports: Sequence[StepReport]) -> None:
        """Sum gradients over all processes. A parameter that has a gradient in none of them gets none."""
        has_gradient = [any(flags) for flags in zip(*(report.has_gradient for report in reports), strict=True)]
        gradients = []
        for parameter, anywhere in zip(self.model.parameters(), has_gradient, strict=True):
            if anywhere:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        self.group.all_reduce_sum(gradients)

    def _save(self) -> None:
        """Save the state. If the root's storage does not take it, training goes on: it may take the next one."""
        self._read_steps()
        optimizer = self.shards.gather(self.optimizer)
        if self.files:  # in the first process
            self.files.save(self._state_dict(optimizer))
            try:
                self.runtime.root.upload(*self.files.paths)
            except MustError as error:
                line = f"its state is on this machine alone: {error}"
                self.runtime.progress(self.job.name, self.step / self.job.steps, line)

    def _stop(self) -> None:
        """Save the state and raise Stopped, in all processes at once: one that leaves ends the others."""
        self._save()
        self.group.all_gather(None)
        self.runtime.stop.set()
        self.runtime.check_stop(self.job.name)

    def _log(self, line: dict[str, Any]) -> None:
        images_per_s = self.job.config.batch / (time.perf_counter() - self.read_at)
        if self._is_validation_due(line["step"]):
            line |= self._validate()
        if self.files:  # in the first process
            step, waited_s = line["step"], round(self.waited, 3)
            self.files.log({**line, "images_per_s": round(images_per_s, 2), "waited_s": waited_s})
            is_last = step == self.job.steps or bool(self.validator and self.validator.is_over)
            self.progress.report(step, line, images_per_s, is_last)
        self.read_at = time.perf_counter()

    def finish(self) -> FitResult:
        """Leave the model trained, averaged or at its best if asked, in eval mode; return the first one's report."""
        if self.ema:
            self.model.load_state_dict(self.ema.module.state_dict())
        if self.validator and self.validator.weights:
            self.model.load_state_dict(self.validator.weights)
        self.model.eval()
        validation = self.validator.counts() if self.validator else None
        found = FitResult(self.limits, self.seconds, self.earlier, self.step, validation)
        return self.group.broadcast_result(lambda: found)

    def close(self) -> None:
        """Close the files, however the training ended."""
        if self.files:  # in the first process
            self.files.close()


def _running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the buffers of batch norms that see one process's images; SyncBatchNorm's are the same everywhere."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return [buffer for norm in norms if not isinstance(norm, nn.SyncBatchNorm) for buffer in norm.buffers()]
