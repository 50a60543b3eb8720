"""Check that sets whose images have other channels than RGB are used with others of as many, and where they can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from flows.plan.evaluation_steps import probed_sets
from flows.plan.resolve import ResolvedRecipe
from pipeline.data.bands import RGB
from pipeline.errors import ConfigError
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.teacher import TeacherConfig


def check_channels(resolved: ResolvedRecipe) -> None:
    """Raise ConfigError for sets of different channels that one network would see, and for what takes RGB alone."""
    recipe = resolved.recipe
    channels = {name: config.channels for name, config in recipe.data.items()}
    if set(channels.values()) == {RGB}:
        return
    _check_same("pool", "a student", recipe.pool, channels)
    for name, teacher in recipe.teachers.items():
        place = f"teachers.{name}"
        if teacher.training_set is None:
            _check_rgb(place, f"models of kind {teacher.kind!r}", _seen_by(teacher, recipe), channels)
        _check_same(place, "a teacher", _seen_by(teacher, recipe), channels)
    _check_same("evaluate.sets", "the student", [*recipe.pool, *recipe.evaluate.sets], channels)
    for place, subject, sets in _for_rgb(resolved):
        _check_rgb(place, subject, sets, channels)


def _seen_by(teacher: TeacherConfig, recipe: Recipe) -> list[str]:
    """Return the sets whose images a teacher sees."""
    labelled = recipe.pool if teacher.labelled_sets is None or teacher.is_live else teacher.labelled_sets
    named = (teacher.training_set, teacher.calibration_set, teacher.domain_set)
    return [*(name for name in named if name is not None), *labelled]


def _for_rgb(resolved: ResolvedRecipe) -> Iterator[tuple[str, str, Iterable[str]]]:
    """Yield what takes pictures in RGB alone: its place, what it is, and the sets that it reads or starts from."""
    recipe, evaluate = resolved.recipe, resolved.recipe.evaluate
    for stage in resolved.stages:
        yield f"stages.{stage.name}", "stages", [*stage.data, *recipe.pool]
    if evaluate.probes:
        yield "evaluate.probes", "probes", [*probed_sets(evaluate, resolved.spaces), *recipe.pool]
    if evaluate.finetune:
        yield "evaluate.finetune", "fine-tuning", [*evaluate.finetune, *recipe.pool]
    for name, config in recipe.compare.items():
        yield f"{COMPARE}.{name}", "comparisons", [config.measured_on, *config.data, *recipe.pool]
    yield "resized", "reduced copies", recipe.resized


def _check_same(place: str, subject: str, sets: Iterable[str], channels: Mapping[str, int]) -> None:
    """Raise ConfigError, with the first two sets that differ, unless all have the same number of channels."""
    names = list(sets)
    for name in names[1:]:
        if channels[name] != channels[names[0]]:
            both = f"{names[0]!r} has images of {channels[names[0]]} channels, set {name!r} of {channels[name]}"
            raise ConfigError(f"{place}: set {both}, and {subject} takes images of one number of channels.")


def _check_rgb(place: str, subject: str, sets: Iterable[str], channels: Mapping[str, int]) -> None:
    for name in sets:
        if channels[name] != RGB:
            raise ConfigError(
                f"{place}: {subject} can only take images of {RGB} channels; set {name!r} has {channels[name]}. Leave "
                f"{place} out, or take sets of pictures."
            )
