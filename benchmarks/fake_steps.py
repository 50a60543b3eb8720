"""Steps that fill a benchmark's root: sealed like real artifacts, but written by a function of the benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.steps.artifact import Inputs, Step, StepKind

StepFunction = Callable[[Mapping[str, Any], Inputs, Path], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class FakeStep(Step):
    """A step that calls `replacement` instead of its own function."""

    replacement: StepFunction | None = None

    def function(self) -> Any:
        return self.replacement


def fake_step(name: str, config: Mapping[str, Any], replacement: StepFunction) -> FakeStep:
    """Return a fake step whose kind and section are read from its name, such as `data.pool`."""
    section = tuple(name.split("."))
    return FakeStep(name, StepKind(section[0], ""), section, config, replacement=replacement)
