"""What `must bench` measures: steps of a recipe, on what a run of it left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.run import prepare
from pipeline.artifacts import Inputs, Step
from pipeline.config import Recipe
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.runtime import Runtime


def made_inputs(recipe: Recipe, runtime: Runtime, name: str) -> tuple[Step, Inputs]:
    """The step `name` and the artifacts that it reads. DataError if they were not made yet, or for other settings."""
    planned = {each.step.name: each for each in prepare(recipe, runtime.root)[1]}
    step = planned[name].step
    made = {each: planned[each].artifact for each in step.inputs}
    missing = [each for each, artifact in made.items() if artifact is None]
    if missing:
        raise DataError(
            f"{runtime.root}: there is nothing for {', '.join(missing)} as the recipe {recipe.name!r} has it: "
            "`must run` with this recipe and root first; `must plan` says what differs."
        )
    return step, Inputs({each: artifact for each, artifact in made.items() if artifact}, runtime)


def bench_labelling(recipe: Recipe, runtime: Runtime, images: int) -> dict[str, Any]:
    """See `teachers.labelling.bench.measure_labelling`."""
    from teachers.labelling.bench import measure_labelling  # noqa: PLC0415 - needs torch

    step, inputs = made_inputs(recipe, runtime, "label")
    return measure_labelling(inputs, step.config["batch"], images)
