"""Whether the sets have the labels that a run's steps ask for: told as soon as the sets are read, and not when a step
that needs the labels has its turn, which may be days later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from evaluation.few import splits_by_task
from pipeline.artifacts import Inputs, Step, hash_json
from pipeline.errors import naming


def is_early(step: str) -> bool:
    """Whether a step, by its name, reads a set or tells which images a stage may see: nothing is trained before it, and
    what these steps leave is all that is looked at here.
    """
    return step.startswith(("data.", "pool."))


def check_amounts(steps: Iterable[Step], inputs: Inputs) -> None:
    """Raise ConfigError, beginning with the place in the recipe, if one of the steps asks for labels that its sets
    lack, or a stage for images. `inputs` are what the early steps left.
    """
    asked = {hash_json(wish): (step, wish[0]) for step in steps if (wish := _wish(step))}
    for step, place in asked.values():
        with naming(place):
            _check(step, inputs)


def _wish(step: Step) -> list[Any]:
    """Where a recipe asks for a step, and what that asks of the sets, which may be the same for many; [] if nothing."""
    config, (kind, *names) = step.config, step.name.split(".")
    compared = kind == "compare"
    if "stage" in config:
        place = f"compare.{names[0]}.methods.{names[1]}" if compared else f"stages.{names[0]}"
        return [place, config["seed"], [config["stage"][key] for key in ("data", "share", "labels")]]
    if "labels" in config:
        place = f"compare.{names[0]}" if compared else "evaluate"
        return [place, "probes" in config, *(config[key] for key in ("set", "splits", "labels"))]
    return []


def _check(step: Step, inputs: Inputs) -> None:
    if "stage" in step.config:
        from selfsup.stages.stage import given  # noqa: PLC0415 - torch, which a recipe with stages has loaded already

        given(step.config, inputs)
    else:
        for splits in splits_by_task(step.config, inputs).values():
            splits.counts(step.config["labels"], step.config["set"])
