"""Steps of a root that is made for a benchmark: sealed like any, by functions that are no steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.steps.artifact import Inputs, Step, StepKind

Leave = Callable[[Mapping[str, Any], Inputs, Path], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Pretended(Step):
    """A step that calls something else, at the address of its own."""

    instead: Leave | None = None

    def function(self) -> Any:
        return self.instead


def pretend(name: str, config: Mapping[str, Any], instead: Leave) -> Pretended:
    """Return a step of the kind and the section that its name begins with, as `data.pool`."""
    section = tuple(name.split("."))
    return Pretended(name, StepKind(section[0], ""), section, config, instead=instead)
