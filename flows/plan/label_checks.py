"""Whether the sets have the labels that a run's steps ask for: told as soon as the sets are read, and not when a step
that needs the labels has its turn, which may be days later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from evaluation.label_subsets import asked_of
from pipeline.errors import error_context
from pipeline.recipe.comparison import comparison_of
from pipeline.steps.artifact import Inputs, Step, hash_json


def is_early(step: str) -> bool:
    """Whether a step, by its name, reads a set or tells which images a stage may see: what these steps leave is all
    that is looked at here.
    """
    return step.startswith(("data.", "pool."))


def check_amounts(steps: Iterable[Step], inputs: Inputs) -> None:
    """Raise ConfigError, beginning with the place in the recipe, if one of the steps asks for labels that its sets
    lack, or a stage for images. `inputs` are what the early steps left. Of steps that ask for the same, the first one
    is looked at.
    """
    asked: dict[str, Step] = {}
    for step in steps:
        wish = _wish(step)
        if wish:
            asked.setdefault(hash_json(wish), step)
    for step in asked.values():
        with error_context(_place(step)):
            _check(step, inputs)


def _wish(step: Step) -> list[Any]:
    """What a step asks of the sets, which may be the same for many; [] if nothing."""
    config = step.config
    if "stage" in config:
        data, share, tail, labels = (config["stage"].get(key) for key in ("data", "share", "long_tail", "labels"))
        return [data, share, tail, labels, config["seed"] if labels and share < 1 else None]
    if "labels" in config:
        return ["probes" in config, *(config[key] for key in ("set", "splits", "labels"))]
    return []


def _place(step: Step) -> str:
    """Where a recipe asks for a step."""
    compared, names = comparison_of(step.name), step.name.split(".")
    if "stage" in step.config:
        return f"compare.{compared}.methods.{names[2]}" if compared else f"stages.{names[1]}"
    return f"compare.{compared}" if compared else "evaluate"


def _check(step: Step, inputs: Inputs) -> None:
    if "stage" in step.config:
        from selfsup.stages.step import given  # noqa: PLC0415 - torch, which a recipe with stages has loaded already

        given(step.config, inputs)
    else:
        asked_of(step.config, inputs)
