"""Steps that train the student, and let it label the pool. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from flows.plan.data_steps import learned_rejections
from flows.plan.label_steps import label_step, labelled_sets, pooled_steps
from flows.plan.resized_steps import resized_inputs
from flows.plan.resolve import ResolvedRecipe
from flows.plan.teacher_steps import weights_of
from ingest.rejections import REJECTED_LABELS
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.student import PREVIOUS_STUDENT
from pipeline.steps.artifact import LabelCheck, Step, StepKind
from pipeline.stores.naming import STUDENT_LABEL_STEP, round_labels, round_student, student_labels

STUDENT = StepKind(
    "student",
    "student.train:train_student",
    version=5,
    trains="student.batch",
    location_keys=("student.weights",),
)


def judged_sets(config: Mapping[str, Any]) -> Any:
    """Return what the choice of labels asks of its sets, as `LabelCheck.needs`."""
    return config["judged"]


CHOICE = StepKind(
    "label_choice",
    "student.rounds:choose_labels",
    label_check=LabelCheck(judged_sets, "student.rounds:check_held_out"),
)


def label_needs(config: Mapping[str, Any]) -> list[Any]:
    """Return what the student asks of its sets, as `LabelCheck.needs`."""
    return [config.get(key) for key in ("learned", "true_sets", "pooled")]


def plan_steps(resolved: ResolvedRecipe) -> Iterator[Step]:
    """Yield the steps of all rounds: each trains a student, and lets it label the pool for the next one.

    That of the last round labels it if the recipe asks for it.
    """
    rounds = resolved.recipe.rounds
    for number in range(1, rounds + 1):
        yield _student_step(resolved, round_student(number, rounds), round_labels(number))
        if number < rounds:
            yield from _next_labels(resolved, number)
    if resolved.recipe.labelling.student:
        yield _student_labels(resolved.recipe, STUDENT_LABEL_STEP, "student")


def _student_step(resolved: ResolvedRecipe, name: str, labels: str) -> Step:
    """Return the step that trains a student on the labels that a step lists."""
    recipe = resolved.recipe
    config = {
        "student": recipe.student.model_dump(mode="json"),
        "seed": recipe.seed,
        **weights_of(recipe.student, "student"),
    }
    pooled = pooled_steps(recipe)
    truths = tuple(name for name in _true_sets(recipe) if name not in pooled)
    rejected = (REJECTED_LABELS,) if len(learned_rejections(resolved)) else ()
    copies = resized_inputs(recipe, "student", recipe.pool, recipe.student.image_size)
    before = _compared_students(recipe, labels)
    inputs = ("pool", labels, *before, *pooled, *truths, *resolved.teacher_steps, *rejected, *copies)
    if recipe.student.validate:
        config["learned"] = {name: [data, task] for name, data, task in _learned(recipe)}
    if recipe.student.labels == "true_only":
        config |= {"true_sets": _true_sets(recipe), "pooled": list(pooled)}
    check = LabelCheck(label_needs, "student.train:check_labels")
    kind = dataclasses.replace(STUDENT, label_check=check if "learned" in config or "true_sets" in config else None)
    if name == "student":
        return Step(name, kind, ("student",), config, inputs)
    return Step(name, kind, ("rounds", "student"), {**config, "name": name}, inputs)  # no goal of a run


def _compared_students(recipe: Recipe, labels: str) -> list[str]:
    """Return the step of the student's labels that a student, which learns those of `labels`, compares them with."""
    wanted = any(compared.against == PREVIOUS_STUDENT for compared in recipe.student.disagreement.values())
    rounds = range(1, recipe.rounds)
    return [
        student_labels(round_student(number, recipe.rounds))
        for number in rounds
        if wanted and round_labels(number + 1) == labels
    ]


def _student_labels(recipe: Recipe, name: str, student: str) -> Step:
    """Return the step in which a student labels the pool."""
    return label_step(name, recipe, {"require": {}}, ("pool", *pooled_steps(recipe), student))


def _next_labels(resolved: ResolvedRecipe, number: int) -> Iterator[Step]:
    """Yield the steps in which the student of a round labels the pool, and its labels are chosen where it may."""
    recipe, before, student = resolved.recipe, round_labels(number), round_student(number, resolved.recipe.rounds)
    after = student_labels(student)
    yield _student_labels(recipe, after, student)
    judged = {name: [data, task] for name, data, task in _learned(recipe)}
    sets = dict.fromkeys(f"data.{data}" for data, _ in judged.values())
    inputs = (before, student, after, *sets, *resolved.labelling_steps)
    config = {"labeller": student, "before": before, "after": after, "judged": judged, **labelled_sets(recipe)}
    yield Step(round_labels(number + 1), CHOICE, ("rounds",), config, inputs)


def _learned(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield the teachers that the student learns from and that learned from a set: (name, set, task)."""
    for name, teacher in recipe.teachers.items():
        if teacher.training_set is not None and recipe.student.loss_weights.get(name) != 0:
            yield name, teacher.training_set, teacher.task


def _true_sets(recipe: Recipe) -> list[str]:
    """Return the steps that read the sets whose true labels the student may learn, in order of their names."""
    taught = {teacher.training_set for teacher in recipe.teachers.values()} - {None}
    return sorted(f"data.{name}" for name in taught.union(*recipe.student.truths.values()))
