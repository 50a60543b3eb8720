"""The one training loop: teachers and the student are trained by `fit`.

What is trained returns its losses; the loop owns the rest: device and precision, schedule, accumulation, clipping,
averaging of weights, the log, and a state on disk from which a run goes on in the middle of an epoch as if nothing
had happened.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

import torch
from lightning.fabric import Fabric
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from pipeline.artifacts import LOG, WORK
from pipeline.checkpoint import load_state, restore_rng, rng_state, save_state
from pipeline.config import FitConfig
from pipeline.errors import DataError
from pipeline.machine import Choice
from pipeline.runtime import Runtime

STATE = "state.safetensors"
TOTAL = "the combined loss"


class Objective(Protocol):
    """What is trained: an `nn.Module` called on a batch."""

    def __call__(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and the named parts for the log (detached)."""


class Stream(Protocol):
    """Where batches come from, by number, `accumulate` of them a step. A batch has `keys`, the images' keys."""

    waited: float

    def stream(self, start: int) -> Iterator[Any]: ...


@dataclasses.dataclass(frozen=True)
class Job:
    """What one call of `fit` trains, on what, how long, where it leaves its state, and what it is called."""

    name: str
    objective: nn.Module
    stream: Stream
    steps: int
    out: Path
    config: FitConfig


class Losses(NamedTuple):
    """Of one step: what was minimised, the named parts it was combined from, and the highest learning rate."""

    total: float
    parts: dict[str, float]
    lr: float


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """The factor on the learning rate at `step` of `steps`: a linear rise over `warmup` of them, then a cosine to 0."""
    rise = int(steps * warmup)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def parameter_groups(module: nn.Module, config: FitConfig) -> list[dict[str, Any]]:
    """Trainable parameters in four groups: backbone or not, matrices with weight decay and the rest without."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            inside = "backbone" in name.split(".")[:2]  # of the network; a head may be called backbone too
            groups.setdefault((inside, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr * (config.backbone_lr if backbone else 1.0),
            "weight_decay": config.weight_decay if matrix else 0.0,
        }
        for (backbone, matrix), parameters in groups.items()
    ]


def _optimizer(module: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(module, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Moments in their parameters' memory layout: the fused step pairs them up as they lie in memory."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)


def fit(job: Job, choice: Choice, runtime: Runtime) -> nn.Module:
    """Train `job.objective` and return it (its averaged weights, if averaging is on), in eval mode, on its device.

    A state in `out/work` is gone on from. Raises DataError with step and keys if the loss is not finite, and Stopped,
    after saving the state, if a stop was asked for.
    """
    training = _Training(job, choice, runtime)
    training.resume()
    training.run()
    return training.finish()


class _Training:
    """The moving parts of one fit: model, optimiser, schedule, average, log, position."""

    def __init__(self, job: Job, choice: Choice, runtime: Runtime) -> None:
        self.job, self.choice, self.runtime = job, choice, runtime
        self.fabric: Fabric = choice.fabric()
        module = choice.place(job.objective.train())
        self.model, self.optimizer = self.fabric.setup(module, _optimizer(module, job.config))
        rate = lambda step: learning_rate(step, job.steps, job.config.warmup)  # noqa: E731
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        self.ema = ModelEmaV3(module, job.config.ema, use_warmup=True) if job.config.ema else None
        self.module, self.step = module, 0
        for folder in (WORK, LOG):
            (job.out / folder).mkdir(parents=True, exist_ok=True)
        self.log = _Log(job.out / LOG / "train.jsonl")

    def resume(self) -> None:
        """Go on from the state on disk, if there is one."""
        path = self.job.out / WORK / STATE
        if not path.exists():
            self.log.truncate(0)
            return
        try:
            state = load_state(path)
        except DataError as error:
            raise DataError(f"{error} Delete it to start {self.job.name} over.") from error
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        _lay_out_like_parameters(self.optimizer)
        self.schedule.load_state_dict(state["schedule"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        restore_rng(state["rng"])
        self.step = state["step"]
        self.log.truncate(self.step)

    def save(self) -> None:
        """Leave a state to go on from."""
        state = {
            "step": self.step,
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.state_dict() if self.ema else {},
            "rng": rng_state(),
        }
        save_state(self.job.out / WORK / STATE, state)

    def run(self) -> None:
        """Train from the current step to the last."""
        saved = time.monotonic()
        batches = self.job.stream.stream(self.step * self.job.config.accumulate)
        try:
            while self.step < self.job.steps:
                began = time.perf_counter()
                pieces = [next(batches) for _ in range(self.job.config.accumulate)]
                losses = self._update(pieces)
                self.step += 1
                self._report(losses, self.job.config.batch / (time.perf_counter() - began))
                stop = self.runtime.stop.is_set()  # asked once: what stops here has saved its state
                if stop or time.monotonic() - saved > self.job.config.checkpoint_s:
                    self.save()
                    saved = time.monotonic()
                if stop:
                    self.runtime.check_stop(self.job.name)
        finally:
            batches.close()  # type: ignore[attr-defined]  # a generator: ends its threads
            self.log.close()

    def _update(self, pieces: Sequence[Any]) -> Losses:
        """One optimiser step over the pieces of its batch. What is not finite never reaches the weights."""
        sums: dict[str, list[float]] = {}
        for number, piece in enumerate(pieces, start=1):
            with self.fabric.no_backward_sync(self.model, enabled=number < len(pieces)):
                with self.choice.autocast():
                    total, losses = self.model(self.fabric.to_device(piece))
                self._check("loss", total, [piece])
                self.fabric.backward(total / len(pieces))
            for name, loss in {**losses, TOTAL: total}.items():
                sums.setdefault(name, []).append(float(loss.detach()))
        most = self.job.config.clip or math.inf  # infinite: measured, not clipped
        norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=most, error_if_nonfinite=False)
        self._check("gradient", norm, pieces)
        lr = max(float(rate) for rate in self.schedule.get_last_lr())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.ema:
            self.ema.update(self.module, self.step)
        means = {name: sum(values) / len(values) for name, values in sums.items()}
        return Losses(means.pop(TOTAL), means, lr)

    def _check(self, what: str, value: Tensor | None, pieces: Sequence[Any]) -> None:
        if value is not None and not bool(value.isfinite()):
            keys = ", ".join(key for piece in pieces for key in piece.keys)
            found = f"the {what} is {float(value.detach())} at step {self.step}"
            raise DataError(
                f"{self.job.name}: {found}. Images of the batch: {keys}. "
                "A smaller lr, or leaving these images out, may help."
            )

    def _report(self, losses: Losses, rate: float) -> None:
        line = {
            "step": self.step,
            "loss": losses.total,
            "losses": losses.parts,
            "lr": losses.lr,
            "images_per_s": round(rate, 2),
            "waited_s": round(self.job.stream.waited, 3),
        }
        self.log.write(line)
        done = self.step / self.job.steps
        self.runtime.progress(self.job.name, done, f"loss {losses.total:.3f}, {rate:.0f} images/s")

    def finish(self) -> nn.Module:
        """The trained module, averaged if asked, in eval mode."""
        if self.ema:
            self.module.load_state_dict(self.ema.module.state_dict())
        return self.module.eval()


class _Log:
    """One JSON line per step; cut back on resume to the step that the state on disk is at."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open()

    def _open(self) -> TextIO:
        return open(self._path, "a", encoding="utf-8", buffering=1)  # line by line: what is logged is on disk

    def truncate(self, step: int) -> None:
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1].splitlines()  # the last line may be torn
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        self._file.close()
        self._path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = self._open()

    def write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()
