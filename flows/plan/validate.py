"""Check that the parts of a recipe fit together, as far as names, labels and schedules tell. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import tasks
from flows.plan.channel_checks import check_channels
from flows.plan.evaluation_steps import check_probes, probed_sets
from flows.plan.resolve import ResolvedRecipe, Spaces, method_place
from ingest.dataset import check_labels_fit, teacher_space
from ingest.true_labels import class_names
from pipeline.errors import ConfigError, error_context, require_one_of
from pipeline.recipe.base import FitConfig
from pipeline.recipe.comparison import COMPARE, CompareConfig
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.stage import StageConfig, labelled_images
from pipeline.recipe.student import PREVIOUS_STUDENT
from pipeline.recipe.teacher import TeacherConfig
from pipeline.stores.labels import LabelSpace
from student.disagreement import check_comparable


def validate(resolved: ResolvedRecipe) -> None:
    """Raise ConfigError for a part of the recipe that does not fit the others, or the labels that there are."""
    recipe, spaces = resolved.recipe, resolved.spaces
    check_channels(resolved)
    _check_teachers(recipe, spaces)
    recipe.student.check_weights(
        {
            name: teacher.optimizer_name() if isinstance(teacher, FitConfig) else None
            for name, teacher in recipe.teachers.items()
        }
    )
    for name, sets in recipe.student.truths.items():
        _check_truths(name, sets, recipe, spaces)
    for stage in resolved.stages:
        with error_context(f"stages.{stage.name}"):
            _check_stage(stage, recipe, spaces)
    for name in recipe.evaluate.sets:
        _check_evaluated(name, recipe, spaces)
    _check_evaluation(recipe, spaces)
    _check_rounds(recipe)
    for name in recipe.student.disagreement:
        _check_disagreement(name, recipe, spaces)
    for name, config in recipe.compare.items():
        _check_comparison(f"{COMPARE}.{name}", config, spaces)
        for each in resolved.comparisons[name]:
            if each.stage:
                with error_context(method_place(name, each.trial)):
                    _check_stage(each.stage, recipe, spaces)


def _check_teachers(recipe: Recipe, spaces: Spaces) -> None:
    """Raise ConfigError for a set without a teacher's labels, or a gate that can't be measured."""
    for name, teacher in recipe.teachers.items():
        if teacher.training_set is not None:
            teacher_space(name, teacher.task, teacher.training_set, spaces[teacher.training_set])
        if name in recipe.student.applicability and teacher.domain_set is None:
            raise ConfigError(
                f"student.applicability names {name!r}, but nothing says which images it knows: name a set of such "
                f"images as teachers.{name}.domain."
            )
        if teacher.require and teacher.require != "none":
            _check_required(name, teacher)
        if teacher.calibrate is not None:
            _check_calibration(name, recipe, spaces)
        if teacher.is_live:
            _check_live(name, teacher.task, recipe)


def _check_rounds(recipe: Recipe) -> None:
    """Raise ConfigError for rounds that would change nothing, or could not be decided on."""
    if recipe.rounds == 1:
        return
    if recipe.student.labels == "true_only":
        raise ConfigError(
            f"rounds is {recipe.rounds}, but student.labels is 'true_only': students that learn no pseudo labels are "
            "the same in every round. Leave one of them out."
        )
    learned = [name for name in recipe.teachers if recipe.student.loss_weights.get(name) != 0]
    if not any(recipe.teachers[name].training_set for name in learned):
        raise ConfigError(
            f"rounds is {recipe.rounds}, but the student labels only where it can be compared with a teacher on the "
            f"held-out images of the set that this one learned from, and {', '.join(learned)} learn from none: add a "
            "teacher of kind supervised, or leave rounds out."
        )


def _check_required(name: str, teacher: TeacherConfig) -> None:
    """Raise ConfigError if a metric is required of a teacher that is measured on no images before it labels."""
    if isinstance(teacher, FitConfig) or teacher.calibration_set is not None:
        return
    can_be_measured = tasks.label(LabelSpace(teacher.task)).can_be_calibrated
    remedy = f"write teachers.{name}.calibrate: {{data: SET}}, or leave it out" if can_be_measured else "leave it out"
    raise ConfigError(
        f"teachers.{name}.require is {teacher.require!r}, but only teachers that are trained here, or calibrated on a "
        f"named set, are measured before they label; {remedy} for kind {teacher.kind!r}, task {teacher.task!r}."
    )


def _check_live(name: str, task: str, recipe: Recipe) -> None:
    """Raise ConfigError if a live teacher's answers are no labels as they come, or its labels are asked for."""
    place = f"teachers.{name}.labels is 'live'"
    if not tasks.label(LabelSpace(task)).can_be_live:
        able = " and ".join(repr(name) for name in tasks.names() if tasks.label(LabelSpace(name)).can_be_live)
        raise ConfigError(f"{place}, which is for the tasks {able}, and its task is {task!r}: leave it out.")
    if name in recipe.student.applicability:
        raise ConfigError(f"{place}, so that student.applicability.{name} has no labels to leave out: leave one out.")
    if recipe.student.labels == "true_only":
        raise ConfigError(f"{place}, but student.labels is 'true_only', which leaves pseudo labels out: leave one out.")


def _check_disagreement(name: str, recipe: Recipe, spaces: Spaces) -> None:
    """Raise ConfigError if a teacher's labels can't be weighted, or there are no others to compare them with."""
    place, teacher = f"student.disagreement.{name}", recipe.teachers[name]
    against = recipe.student.disagreement[name].against
    if teacher.is_live or not tasks.label(LabelSpace(teacher.task)).can_be_weighted:
        why = "is asked while the student learns" if teacher.is_live else f"is of task {teacher.task!r}"
        raise ConfigError(f"{place}: teacher {name!r} {why}, and its labels can't be weighted: leave it out.")
    if recipe.student.loss_weights.get(name) == 0:
        raise ConfigError(
            f"{place}: student.loss_weights.{name} is 0, so that its labels are not learned: leave it out."
        )
    if recipe.student.labels == "true_only":
        raise ConfigError(f"{place} weights pseudo labels, and student.labels is 'true_only': leave one of them out.")
    if against == PREVIOUS_STUDENT:
        if recipe.rounds == 1:
            raise ConfigError(f"{place}.against is 'student', the one of the round before: write rounds: 2 or more.")
        return
    others = [
        other
        for other, each in recipe.teachers.items()
        if other != name and each.task == teacher.task and not each.is_live
    ]
    if against not in others:
        offered = (
            f"the teachers of task {teacher.task!r} are {', '.join(others)}" if others else "there is no other one"
        )
        raise ConfigError(
            f"{place}.against is {against!r}, no other teacher of task {teacher.task!r} with stored labels: {offered}; "
            f"`student` with rounds: 2 would work as well."
        )
    own, other = (_known_space(each, recipe, spaces) for each in (name, against))
    if own is not None and other is not None:  # else it is checked when the student is trained
        check_comparable(name, own, against, other)


def _known_space(name: str, recipe: Recipe, spaces: Spaces) -> LabelSpace | None:
    """Return what a teacher's labels mean, as far as that is known before it is made."""
    teacher = recipe.teachers[name]
    if teacher.prompted_by is not None:
        boxes = _known_space(teacher.prompted_by, recipe, spaces)
        return boxes and dataclasses.replace(boxes, task=teacher.task)
    learned = teacher.training_set
    return teacher.label_space() if learned is None else spaces[learned][teacher.task]


def _check_calibration(name: str, recipe: Recipe, spaces: Spaces) -> None:
    """Raise ConfigError if a teacher is to be calibrated on no set, or on one whose labels do not fit it."""
    teacher = recipe.teachers[name]
    place, data = f"teachers.{name}.calibrate", teacher.calibration_set
    if data is None:
        raise ConfigError(
            f"{place} names no set, and kind {teacher.kind!r} is not trained on one: write {{data: SET}}."
        )
    trained_on = teacher.training_set
    if data == trained_on:
        return
    if not tasks.label(LabelSpace(teacher.task)).can_be_calibrated:
        raise ConfigError(f"{place}: labels of task {teacher.task!r} have no scores to calibrate; leave it out.")
    space = _known_space(name, recipe, spaces)
    if space is not None:  # else it is checked when the teacher is made
        check_labels_fit(place, name, space, data, spaces[data])


def _check_truths(name: str, sets: Sequence[str], recipe: Recipe, spaces: Spaces) -> None:
    """Raise ConfigError unless sets of true labels have the teacher's task, and its classes where they are known."""
    teacher = recipe.teachers[name]
    for other in sets:
        learned = teacher.training_set or other
        space = teacher_space(name, teacher.task, learned, spaces[learned])
        check_labels_fit(f"student.truths.{name}", name, space, other, spaces[other])


def _check_stage(stage: StageConfig, recipe: Recipe, spaces: Spaces) -> None:
    """Raise ConfigError if a stage asks for a teacher that is not there, or for classes that its sets don't have."""
    if stage.taught_by is not None:
        teacher = recipe.teachers[require_one_of(stage.taught_by, recipe.teachers, "teacher")]
        if stage.taught_task not in (None, teacher.task):
            raise ConfigError(
                f"teacher {stage.taught_by!r} is of task {teacher.task!r}, and {stage.method!r} learns from one of "
                f"task {stage.taught_task!r}: {_of_task(stage.taught_task, recipe)}."
            )
        if stage.taught_task is None:
            _check_readout(stage, teacher)
    if stage.labels is not None:
        with error_context("labels"):
            labelled_images(stage, class_names(stage.data, spaces))
    if stage.long_tail is not None:
        with error_context("long_tail"):
            class_names(stage.data, spaces)
    if stage.learns_from_classes:
        with error_context(f"method {stage.method!r} learns from classes, and"):
            class_names(stage.data, spaces)


def _of_task(task: str, recipe: Recipe) -> str:
    """Return which teachers of the recipe are of a task, in words."""
    found = [name for name, teacher in recipe.teachers.items() if teacher.task == task]
    return f"{' or '.join(found)} would work" if found else "the recipe has none, add one"


def _check_readout(stage: StageConfig, teacher: TeacherConfig) -> None:
    """Raise ConfigError if it is known that a stage's teacher tells no vector of an image, or no map that it reads."""
    if teacher.readout == "nothing" or (teacher.readout == "vector" and stage.reads_maps):
        missing, way_out = ("map", "set maps to 0, or take") if teacher.readout == "vector" else ("vector", "take")
        raise ConfigError(
            f"teacher {stage.taught_by!r} is of kind {teacher.kind!r}, whose models tell no {missing} of an image: "
            f"{way_out} a teacher of kind backbone, supervised or checkpoint."
        )


def _check_evaluated(name: str, recipe: Recipe, spaces: Spaces) -> None:
    """Raise ConfigError unless a teacher has a task of the set, and its classes where they are known."""
    for teacher in recipe.teachers.values():
        known = spaces[teacher.training_set].get(teacher.task) if teacher.training_set is not None else None
        if teacher.task in spaces[name] and known in (None, spaces[name][teacher.task]):
            return
    raise ConfigError(
        f"evaluate.sets names {name!r}, which has labels for {_listed(spaces[name])}: "
        "no teacher has a task and classes in common with it."
    )


def _check_evaluation(recipe: Recipe, spaces: Spaces) -> None:
    """Raise ConfigError for sets without the labels for the probes or the fine-tuning."""
    config = recipe.evaluate
    probed_sets(config, spaces)
    for name in config.finetune:
        if not spaces[name]:
            raise ConfigError(f"evaluate.finetune names {name!r}, which has no labels to fine-tune on.")


def _check_comparison(place: str, config: CompareConfig, spaces: Spaces) -> None:
    """Raise ConfigError if nothing would be measured, or a set has no labels to measure on."""
    if not config.probes and not config.finetune:
        raise ConfigError(f"{place}: neither probes nor finetune are asked for: nothing would be measured.")
    labels = spaces[config.measured_on]
    if not labels:
        raise ConfigError(f"{place}.set is {config.measured_on!r}, which has no labels to measure on.")
    check_probes(place, config.probes, {config.measured_on: labels})


def _listed(tasks_of_set: Mapping[str, object]) -> str:
    return ", ".join(sorted(tasks_of_set)) or "nothing"
