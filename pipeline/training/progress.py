"""Tell how far a training is: a line for the terminal at every step, and one for the step's log at the end of an epoch.

epoch 3/8, loss 0.512, 98 images/s, 2 min left, miou 0.412
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from pipeline.recipe.base import EPOCHS
from pipeline.steps.runtime import Runtime
from pipeline.training.objective import TrainingJob

LOGGED_SHARE = 0.1
"""Share of the steps between lines of the log, for a training whose length is given in steps."""
MINUTE, HOUR = 60.0, 3600.0
"""Seconds."""


class TrainingProgress:
    """The progress of one training in this process, from the step at which it begins or goes on."""

    def __init__(self, job: TrainingJob, runtime: Runtime, step: int) -> None:
        self.job, self.runtime = job, runtime
        self.epochs = None if job.config.steps else job.config.epochs or EPOCHS
        """Passes over the images; None if the recipe gives steps."""
        self.first_step = self.logged_step = step
        self.began = self.logged = time.monotonic()
        self.metric = ""
        """The last validation, as text; empty before the first one."""

    def report(self, step: int, line: Mapping[str, Any], images_per_s: float, is_last: bool) -> None:
        """Tell that `step` steps are done, and log that if they end an epoch. `line` is that of the training's log."""
        if self.job.validation and "validation" in line:
            metric = self.job.validation.metric
            self.metric = f", {metric} {line['validation'][metric]:.3f}"
        left = describe_time((time.monotonic() - self.began) / (step - self.first_step) * (self.job.steps - step))
        text = f"{self._position(step)}, loss {line['loss']:.3f}, {{:.0f}} images/s, {left} left{self.metric}"
        self.runtime.progress(self.job.name, step / self.job.steps, text.format(images_per_s))
        if is_last or self._part(step + 1) > self._part(self.logged_step + 1):
            now = time.monotonic()
            mean = (step - self.logged_step) * self.job.config.batch / max(now - self.logged, 1e-9)
            self.runtime.log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.job.name}: {text.format(mean)}")
            self.logged_step, self.logged = step, now

    def _position(self, step: int) -> str:
        if self.epochs is None:
            return f"step {step}/{self.job.steps}"
        return f"epoch {self._part(step)}/{math.ceil(self.epochs)}"

    def _part(self, step: int) -> int:
        """Return the number of the epoch, or of the tenth of the training, that a step is in, from 1."""
        parts = 1 / LOGGED_SHARE if self.epochs is None else self.epochs
        return math.ceil(round(min(step, self.job.steps) * parts / self.job.steps, 9))


def describe_time(seconds: float) -> str:
    """Return seconds in words, to two digits or so: 40 s, 12 min, 3.5 h.

    >>> describe_time(725)
    '12 min'
    """
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < HOUR else f"{seconds / HOUR:.1f} h"
