"""Steps of a root that is made for a benchmark: sealed like any, by functions that are no steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.steps.artifact import Inputs, Step

Leave = Callable[[Mapping[str, Any], Inputs, Path], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Pretended(Step):
    """A step that calls something else, at the address of its own."""

    instead: Leave | None = None

    def function(self) -> Any:
        return self.instead
