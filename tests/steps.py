"""Steps for tests: as plans make them, but for any function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.steps.artifact import Step, StepKind


def make_step(name: str, run: str, config: Mapping[str, Any], inputs: tuple[str, ...] = (), **kind: Any) -> Step:
    """Return a step whose kind and section are those that its name has in plans: `data.world` is of the kind `data`."""
    section = tuple(name.split("."))
    return Step(name, StepKind(section[0], run, **kind), section, config, inputs)
