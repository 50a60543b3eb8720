"""Training costs of a backbone and of all that it builds on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pipeline.recipe.base import FitConfig
from pipeline.steps.artifact import Artifact

SCHEDULE_KEYS = ("stage", "student", "teacher", "supervised")
"""Keys of a step's configuration that hold a training schedule."""
IMAGES_SEEN = "images_seen"
"""Count of images that went through all steps, kept where steps take more than a batch, as in stages with labels."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Optimizer steps, images that went through them (repeats included), and seconds, summed over labellers."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0


class BackboneCost(NamedTuple):
    """The cost of the last training, and of all that it builds on: other trainings, and labelling."""

    own: Cost
    base: Cost


def backbone_cost(made: Artifact | None, artifacts: Mapping[str, Artifact]) -> BackboneCost:
    """Return the cost of a backbone (None for weights from elsewhere), given the artifacts of the run by step."""
    if made is None:
        return BackboneCost(Cost(), Cost())
    ancestors, waiting = dict[str, Artifact](), list(made.manifest["inputs"])
    while waiting:
        name = waiting.pop()
        if name in artifacts and name not in ancestors:
            ancestors[name] = artifacts[name]
            waiting += artifacts[name].manifest["inputs"]
    return BackboneCost(artifact_cost(made), sum_costs(artifact_cost(ancestor) for ancestor in ancestors.values()))


def artifact_cost(made: Artifact) -> Cost:
    """Return the cost of making one artifact, earlier attempts that it resumed included; without training, no steps."""
    elsewhere: float = made.counts.get("earlier_seconds", 0.0) + made.counts.get("worker_seconds", 0.0)
    seconds: float = made.manifest.get("seconds", 0.0) + elsewhere
    settings: dict[str, Any] = next(
        (made.manifest["config"][key] for key in SCHEDULE_KEYS if key in made.manifest["config"]), {}
    )
    known = {key: value for key, value in settings.items() if key in FitConfig.model_fields}
    if "images" not in made.counts or not known:
        return Cost(seconds=seconds)
    schedule = FitConfig.model_validate(known)
    steps: int = made.counts.get("steps") or schedule.total_steps(made.counts["images"])
    return Cost(steps, made.counts.get(IMAGES_SEEN, steps * schedule.batch), seconds)


def sum_costs(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    rows = [dataclasses.astuple(cost) for cost in costs]
    return Cost(*(sum(column) for column in zip(*rows, strict=True)))
