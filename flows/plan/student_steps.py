"""Steps that train the student, and let it label the pool. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from flows.plan.data_steps import learned_rejections
from flows.plan.label_steps import label_step, pooled_steps
from flows.plan.resolve import ResolvedRecipe
from flows.plan.teacher_steps import weights_of
from ingest.rejections import REJECTED_LABELS
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import Step, StepKind
from pipeline.stores.naming import STUDENT_LABEL_STEP

STUDENT = StepKind("student", "student.train:train_student", version=2, trains=True)


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
    inputs = ("pool", "label", *pooled, *truths, *resolved.teacher_steps, *rejected)
    yield Step("student", STUDENT, ("student",), config, inputs)
    if recipe.labelling.student:
        yield label_step(STUDENT_LABEL_STEP, recipe, {}, ("pool", *pooled, "student"))


def _true_sets(recipe: Recipe) -> list[str]:
    """Return the steps that read the sets whose true labels the student may learn, in order of their names."""
    taught = {teacher.training_set for teacher in recipe.teachers.values()} - {None}
    return sorted(f"data.{name}" for name in taught.union(*recipe.student.truths.values()))
