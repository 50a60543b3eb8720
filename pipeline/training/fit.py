"""The one training loop: teachers and the student are trained by `fit`.

What is trained returns its losses; the loop owns the rest: device and precision, schedule, accumulation, clipping,
averaging of weights, the log, and a state on disk from which a run goes on in the middle of an epoch as if nothing
had happened. Several processes share every batch; their number changes the speed and, but for what is drawn at random
and batch normalisation, nothing else: a run may go on with another number of them. The same holds of the pieces that a
batch comes in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from pipeline.data.stream import Share
from pipeline.errors import ConfigError, MustError
from pipeline.steps import ranks
from pipeline.steps.runtime import Runtime
from pipeline.training.autotune import ComputeConfig
from pipeline.training.microbatch import SMALLER, TOTAL, MicrobatchRunner, StepResult, added
from pipeline.training.objective import TrainingJob
from pipeline.training.optimizer import build_optimizer, lay_out_like_parameters, learning_rate
from pipeline.training.process_group import ProcessGroup
from pipeline.training.state import TrainingState


class Cut(NamedTuple):
    """The device's memory ran out: from `step` on, each share goes through in `pieces` of at most `images` images."""

    step: int
    pieces: int
    images: int


class Fitted(NamedTuple):
    """How a training went: where memory ran out and what was done about it, and its seconds of wall clock, of which
    `earlier` ones are those of attempts that this one went on from, each up to its last state.
    """

    cuts: list[Cut]
    seconds: float
    earlier: float

    def counts(self) -> dict[str, Any]:
        """For a step's counts: `training_seconds`, and where there is something to tell `earlier_seconds`, which are
        among them, and `out_of_memory`.
        """
        counts: dict[str, Any] = {"training_seconds": round(self.seconds, 2)}
        if self.earlier:
            counts["earlier_seconds"] = round(self.earlier, 2)
        if self.cuts:
            counts["out_of_memory"] = [cut._asdict() for cut in self.cuts]
        return counts


class Losses(NamedTuple):
    """Of one step: what was minimised, the named parts it was combined from, and the highest learning rate."""

    total: float
    parts: dict[str, float]
    lr: float


def fit(job: TrainingJob, choice: ComputeConfig, group: ProcessGroup, runtime: Runtime) -> Fitted:
    """Train `job.objective` in place: its averaged weights, if averaging is on, in eval mode, on its device.

    Returns how it went, in all processes by the first one's clock. A state in `out/work` is gone on from. The first
    process reads and writes `out`, the others nothing. Each normalises its batches by its own images, unless its layers
    are SyncBatchNorm; running statistics are averaged over the processes. Raises, in all of them, DataError with step
    and keys if the loss is not finite, ConfigError if memory does not hold one image, and Stopped, after saving the
    state, if any of them was asked to stop.
    """
    try:
        training = _Training(job, choice, group, runtime)
        training.resume()
        training.run()
        return training.finish()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{job.name}: the device's memory does not hold the network and what its optimiser keeps. {SMALLER}"
        ) from error


class _Training:
    """The moving parts of one fit: model, optimiser, schedule, average, log, position."""

    def __init__(self, job: TrainingJob, choice: ComputeConfig, group: ProcessGroup, runtime: Runtime) -> None:
        self.job, self.group, self.runtime = job, group, runtime
        self.module = choice.place(job.objective.train())
        self.passes = MicrobatchRunner(job, choice, group, runtime)
        self.optimizer = build_optimizer(self.module, job.config)
        self.parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        rate = lambda step: learning_rate(step, job.steps, job.config.warmup, job.config.drops)  # noqa: E731
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        self.ema = ModelEmaV3(self.module, job.config.ema, use_warmup=True) if job.config.ema else None
        self.record = TrainingState(job.name, job.out) if ranks.is_first() else None
        self.statistics = _statistics(self.module)
        self.step, self.cuts = 0, list[Cut]()
        self.seconds = self.earlier = 0.0

    @property
    def most(self) -> int:
        """Images in a pass."""
        return min([self.passes.most, *(cut.images for cut in self.cuts)])

    def resume(self) -> None:
        """Go on from the state on disk, if there is one; all processes begin with what the first has."""
        state = self.group.broadcast_made(self._beginning)
        if state:
            self._restore(state)
        self._adopt(self.group.broadcast_made(self.passes.saved_limit))

    def _beginning(self) -> dict[str, Any] | None:
        assert self.record
        state = self.record.load()
        if state is None and self.group.count > 1:
            state = move_data_to_device(self._state(), "cpu")
        return state

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.state_dict() if self.ema else {},
            "cuts": self.cuts,
            "seconds": self.seconds,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        lay_out_like_parameters(self.optimizer)
        self.schedule.load_state_dict(state["schedule"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.step, self.cuts = state["step"], [Cut(*cut) for cut in state["cuts"]]
        self.seconds = self.earlier = state.get("seconds", 0.0)  # older states don't know theirs

    def _adopt(self, most: int) -> None:
        """No more images than `most` in a pass, from the step at hand on."""
        if most < self.most:
            self.cuts.append(Cut(self.step + 1, self.passes.pieces(most), most))

    def run(self) -> None:
        """Train from the current step to the last."""
        started = saved = time.monotonic()
        shares = self.job.stream.stream(self.step)
        try:
            while self.step < self.job.steps:
                began = time.perf_counter()
                losses = self._update(shares)
                self.step += 1
                self._report(losses, self.job.config.batch / (time.perf_counter() - began))
                self.seconds = self.earlier + time.monotonic() - started
                stop = any(
                    self.group.all_gather(self.runtime.stop.is_set())
                )  # asked once: what stops here saves its state
                if stop:
                    self._stop()
                if time.monotonic() - saved > self.runtime.checkpoint_s:
                    self._save()
                    saved = time.monotonic()
        finally:
            shares.close()  # type: ignore[attr-defined]  # a generator: ends its threads
            if self.record:
                self.record.close()

    def _save(self) -> None:
        """Leave a state to go on from. Storage that does not take it now may take the next."""
        if self.record:
            self.record.save(self._state())
            try:
                self.runtime.keep(*self.record.files)
            except MustError as error:
                self._tell(f"its state is on this machine alone: {error}")

    def _stop(self) -> None:
        """Raise Stopped, in all processes once the state is on disk: one that ends takes the others along."""
        self._save()
        self.group.all_gather(None)
        self.runtime.stop.set()
        self.runtime.check_stop(self.job.name)

    def _update(self, shares: Iterator[Share]) -> Losses:
        """One optimiser step on the next batch. What is not finite never reaches the weights."""
        found = self._passes(shares)
        self._adopt(min(each.most for each in found))
        self._sum_gradients(found)
        most = self.job.config.clip or math.inf  # infinite: measured, not clipped
        norm = nn.utils.clip_grad_norm_(self.parameters, most)
        self.passes.check(norm, "gradient", self.step, [key for each in found for key in each.keys])
        lr = max(float(rate) for rate in self.schedule.get_last_lr())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.group.average(self.statistics)  # one process may never have seen a head's labels
        if self.ema:
            self.ema.update(self.module, self.step)
        parts = added(each.parts for each in found)
        return Losses(parts.pop(TOTAL), parts, lr)

    def _passes(self, shares: Iterator[Share]) -> list[StepResult]:
        """This process's passes, and what all found in theirs."""
        amounts = self.group.gather_made(lambda: self.passes.take(next(shares), self.most))

        def run() -> StepResult:
            return self.passes.run(added(amounts), self.step, self.most)

        # where passes meet, nobody hears of an error: the others wait inside a pass, and end with this process
        return self.group.all_gather(run()) if self.passes.meet else self.group.gather_made(run)

    def _sum_gradients(self, found: Sequence[StepResult]) -> None:
        """Gradients over all processes; a parameter that has one in none of them has none."""
        anywhere = [any(flags) for flags in zip(*(each.graded for each in found), strict=True)]
        gradients = []
        for parameter, some in zip(self.module.parameters(), anywhere, strict=True):
            if some:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        self.group.sum(gradients)

    def _report(self, losses: Losses, rate: float) -> None:
        if self.record is None:
            return
        line = {
            "step": self.step,
            "loss": losses.total,
            "losses": losses.parts,
            "lr": losses.lr,
            "passes": self.passes.pieces(self.most),
            "images_per_s": round(rate, 2),
            "waited_s": round(self.job.stream.waited, 3),
        }
        self.record.write(line)
        self._tell(f"loss {losses.total:.3f}, {rate:.0f} images/s")

    def _tell(self, line: str) -> None:
        self.runtime.progress(self.job.name, self.step / self.job.steps, line)

    def finish(self) -> Fitted:
        """Leave the module trained, averaged if asked, in eval mode; how it went, as the first process has it."""
        if self.ema:
            self.module.load_state_dict(self.ema.module.state_dict())
        self.module.eval()
        return self.group.broadcast_made(lambda: Fitted(self.cuts, self.seconds, self.earlier))


def _statistics(module: nn.Module) -> list[Tensor]:
    """The running statistics of the batch norms that see one process's images; SyncBatchNorm's are those of all."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return [buffer for norm in norms if not isinstance(norm, nn.SyncBatchNorm) for buffer in norm.buffers()]
