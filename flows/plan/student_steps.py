"""Steps that train the student, and let it label the pool. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from flows.plan.data_steps import learned_rejections
from flows.plan.label_steps import label_step, pooled_steps
from flows.plan.resized_steps import resized_inputs
from flows.plan.resolve import ResolvedRecipe
from flows.plan.teacher_steps import weights_of
from ingest.rejections import REJECTED_LABELS
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import LabelCheck, Step, StepKind
from pipeline.stores.naming import STUDENT_LABEL_STEP

STUDENT = StepKind(
    "student",
    "student.train:train_student",
    version=5,
    trains="student.batch",
    location_keys=("student.weights",),
)


def label_needs(config: Mapping[str, Any]) -> list[Any]:
    """Return what the student asks of its sets, as `LabelCheck.needs`."""
    return [config.get(key) for key in ("learned", "true_sets", "pooled")]


def plan_steps(resolved: ResolvedRecipe) -> Iterator[Step]:
    """Yield the step that trains the student and, if asked for, the one in which it labels the pool."""
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
    inputs = ("pool", "label", *pooled, *truths, *resolved.teacher_steps, *rejected, *copies)
    if recipe.student.validate:
        config["learned"] = {name: [data, task] for name, data, task in _learned(recipe)}
    if recipe.student.labels == "true_only":
        config |= {"true_sets": _true_sets(recipe), "pooled": list(pooled)}
    check = LabelCheck(label_needs, "student.train:check_labels")
    kind = dataclasses.replace(STUDENT, label_check=check if "learned" in config or "true_sets" in config else None)
    yield Step("student", kind, ("student",), config, inputs)
    if recipe.labelling.student:
        yield label_step(STUDENT_LABEL_STEP, recipe, {"require": {}}, ("pool", *pooled, "student"))


def _learned(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield the teachers that the student learns from and that learned from a set: (name, set, task)."""
    for name, teacher in recipe.teachers.items():
        if teacher.training_set is not None and recipe.student.loss_weights.get(name) != 0:
            yield name, teacher.training_set, teacher.task


def _true_sets(recipe: Recipe) -> list[str]:
    """Return the steps that read the sets whose true labels the student may learn, in order of their names."""
    taught = {teacher.training_set for teacher in recipe.teachers.values()} - {None}
    return sorted(f"data.{name}" for name in taught.union(*recipe.student.truths.values()))
