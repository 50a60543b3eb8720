"""Check that sets whose images have other channels than RGB are used with others of as many, and where they can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from flows.plan.evaluation_steps import probed_sets
from flows.plan.resolve import ResolvedRecipe, method_place
from pipeline.data.bands import RGB
from pipeline.errors import ConfigError
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.stage import SCRATCH, STUDENT, StageConfig
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
    for place, seen, starts in _measured_and_stages(resolved):
        _check_same(place, "a backbone", seen, channels)
        for start in starts:
            _check_start(place, start, seen[0], resolved)
    for place, subject, sets in _for_rgb(resolved):
        _check_rgb(place, subject, sets, channels)


def _seen_by(teacher: TeacherConfig, recipe: Recipe) -> list[str]:
    """Return the sets whose images a teacher sees."""
    labelled = recipe.pool if teacher.labelled_sets is None or teacher.is_live else teacher.labelled_sets
    named = (teacher.training_set, teacher.calibration_set, teacher.domain_set)
    return [*(name for name in named if name is not None), *labelled]


def _measured_and_stages(resolved: ResolvedRecipe) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield where backbones see other sets than the student's and teachers': the place, the sets, and the steps that
    they start from.
    """
    recipe, evaluate = resolved.recipe, resolved.recipe.evaluate
    for stage in resolved.stages:
        yield f"stages.{stage.name}", stage.data, [_step_of(stage)]
    measured = [start.step for start in resolved.starts if start.step]
    for name in probed_sets(evaluate, resolved.spaces):
        yield "evaluate.probes", [name], measured
    for name in evaluate.finetune:
        yield "evaluate.finetune", [name], measured
    for name, config in recipe.compare.items():
        steps = [each.start.step for each in resolved.comparisons[name] if each.start.step]
        yield f"{COMPARE}.{name}", [config.measured_on, *config.data], steps


def _step_of(stage: StageConfig) -> str:
    """Return the step that leaves the backbone that a stage starts from; "" if none does."""
    if stage.start == STUDENT:
        return STUDENT
    return "" if stage.from_weights or stage.start == SCRATCH else f"stage.{stage.start}"


def _check_start(place: str, step: str, seen: str, resolved: ResolvedRecipe) -> None:
    """Raise ConfigError if the backbone of a step is for other images than a set's, unless it is for pictures: then its
    first convolution is adapted.
    """
    data, known = resolved.recipe.data, _seen_in(step, resolved)
    if known is not None and data[known].channels not in (RGB, data[seen].channels):
        raise ConfigError(
            f"{place}: the backbone of {step!r} is for images of {data[known].channels} channels, as in set {known!r}; "
            f"set {seen!r} has {data[seen].channels}. Take a set of as many, or start from scratch."
        )


def _seen_in(step: str, resolved: ResolvedRecipe) -> str | None:
    """Return a set of the images that a step's backbone was trained on; None if it was not trained here."""
    kind, _, name = step.partition(".")
    match kind:
        case "student":
            return resolved.recipe.pool[0]
        case "stage":
            return next(stage.data[0] for stage in resolved.stages if stage.name == name)
        case "teacher":
            return resolved.recipe.teachers[name].training_set
    return None


def _for_rgb(resolved: ResolvedRecipe) -> Iterator[tuple[str, str, Iterable[str]]]:
    """Yield what takes pictures in RGB alone: its place, what it is, and the sets that it reads."""
    recipe, evaluate = resolved.recipe, resolved.recipe.evaluate
    stages = {f"stages.{stage.name}": stage for stage in resolved.stages}
    for name, trials in resolved.comparisons.items():
        stages |= {method_place(name, each.trial): each.stage for each in trials if each.stage}
        if recipe.compare[name].corruptions:
            yield f"{COMPARE}.{name}.corruptions", "corruptions", [recipe.compare[name].measured_on]
    for place, stage in stages.items():
        if stage.needs_pictures:
            yield place, f"this use of method {stage.method!r}", stage.data
    if evaluate.corruptions:
        measured = [*probed_sets(evaluate, resolved.spaces), *evaluate.finetune]
        yield "evaluate.corruptions", "corruptions", measured
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
