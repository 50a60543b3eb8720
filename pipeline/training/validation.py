"""Validation on the way: when a training is measured on held-out images, which weights are kept, and when it ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from pipeline.recipe.base import ValidateConfig
from pipeline.training.autotune import ComputeConfig

Score = Callable[[nn.Module, ComputeConfig], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Validation:
    """The measuring of a training on the way.

    `score(objective, compute)` returns metrics of the objective in eval mode, on its device; `metric` is the one that
    decides, `better` its better direction.
    """

    config: ValidateConfig
    score: Score
    metric: str
    better: Literal["higher", "lower"]


class Validator:
    """The validations of a training so far: the best value, and the weights it belongs to; a part of its state."""

    def __init__(self, validation: Validation, steps: int) -> None:
        self.validation, self.steps = validation, steps
        self.every = validation.config.every_steps(steps)
        self.best: float | None = None
        self.best_step = self.count = self.failed = 0
        self.weights: dict[str, Tensor] = {}
        """The best weights, on the CPU; {} if the last ones are kept."""

    def is_due(self, step: int) -> bool:
        """Return True if the training is to be measured after so many steps: every so often, and at the end."""
        return step % self.every == 0 or step == self.steps

    def add(self, step: int, scores: Mapping[str, float], weights: Mapping[str, Tensor]) -> None:
        """Take the metrics after `step` steps, and keep a copy of the weights if they are the best so far."""
        value = scores[self.validation.metric]
        self.count += 1
        if self.best is None or self._is_better(value):
            self.best, self.best_step, self.failed = value, step, 0
            if self.validation.config.keep == "best":
                self.weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        else:
            self.failed += 1

    def _is_better(self, value: float) -> bool:
        """Return True if a value is better than the best one; any is better than NaN, and NaN than none."""
        assert self.best is not None
        if math.isnan(self.best):
            return not math.isnan(value)
        return value > self.best if self.validation.better == "higher" else value < self.best

    @property
    def is_over(self) -> bool:
        """True if the metric has not improved for as long as the recipe is patient."""
        patience = self.validation.config.patience
        return patience is not None and self.failed >= patience

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "best_step", "count", "failed", "weights")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def counts(self) -> dict[str, Any]:
        """Return what a manifest says: the best value, after which step it was, and which weights were kept."""
        about = {"metric": self.validation.metric, "best": self.best, "step": self.best_step, "validations": self.count}
        return {**about, "kept": self.validation.config.keep}
