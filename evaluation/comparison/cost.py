"""What a backbone cost to come by, and what it takes to reach an accuracy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pipeline.recipe.base import FitConfig
from pipeline.steps.artifact import Artifact

TRAINED = ("stage", "student", "teacher", "supervised")
"""Keys under which a step's configuration has the schedule that it trained by."""
SEEN = "images_seen"
"""The count of images that went through all steps, where they are not the batch's in each, as in stages with labels."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Optimiser steps, images that went through them (as often as they did), and seconds of wall clock."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0


class Price(NamedTuple):
    """What the last training cost, and all that it builds on: other trainings, and labelling."""

    own: Cost
    base: Cost


def price(made: Artifact | None, artifacts: Mapping[str, Artifact]) -> Price:
    """The price of a backbone, None for one that was not made here; `artifacts`: those of the run, by their steps."""
    if made is None:
        return Price(Cost(), Cost())
    before, waiting = dict[str, Artifact](), list(made.manifest["inputs"])
    while waiting:
        name = waiting.pop()
        if name in artifacts and name not in before:
            before[name] = artifacts[name]
            waiting += artifacts[name].manifest["inputs"]
    return Price(cost(made), total(cost(each) for each in before.values()))


def cost(made: Artifact) -> Cost:
    """What making one artifact cost, the training of attempts that it went on from included; no steps for what was not
    trained.
    """
    seconds: float = made.manifest.get("seconds", 0.0) + made.counts.get("earlier_seconds", 0.0)
    settings: dict[str, Any] = next(
        (made.manifest["config"][key] for key in TRAINED if key in made.manifest["config"]), {}
    )
    known = {key: value for key, value in settings.items() if key in FitConfig.model_fields}
    if "images" not in made.counts or not known:
        return Cost(seconds=seconds)
    schedule = FitConfig.model_validate(known)
    steps: int = made.counts.get("steps") or schedule.total_steps(made.counts["images"])
    return Cost(steps, made.counts.get(SEEN, steps * schedule.batch), seconds)


def total(costs: Iterable[Cost]) -> Cost:
    """All of them together."""
    listed = list(costs)
    return Cost(
        sum(each.steps for each in listed), sum(each.images for each in listed), sum(each.seconds for each in listed)
    )


class Point(NamedTuple):
    """A training of some length, and the metric it came to."""

    cost: Cost
    value: float


def steps_to(points: Iterable[Point], wanted: float, better: str = "higher") -> float:
    """The fewest steps at which the best so far is as good as `wanted`; infinite if it never is.

    The best so far is what counts, as in HPT's curves: a longer training that comes out worse takes nothing back.
    """
    reached = [
        point.cost.steps for point in points if (point.value >= wanted if better == "higher" else point.value <= wanted)
    ]
    return min(reached, default=math.inf)
