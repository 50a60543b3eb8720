"""Steps that make the teachers. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import tasks
from flows.plan.prompt_checks import prompters
from flows.plan.resized_steps import resized_inputs
from flows.plan.resolve import ResolvedRecipe
from pipeline.errors import error_context
from pipeline.models.weights import weights_digest
from pipeline.recipe.base import FitConfig
from pipeline.recipe.teacher import TeacherConfig, TrainingConfig
from pipeline.steps.artifact import LabelCheck, Step, StepKind
from pipeline.stores.labels import LabelSpace

TEACHER = StepKind("teacher", "teachers.supervised:make", version=7, location_keys=("teacher.weights",))
"""The kind of all teachers. Plans replace `run` by the `make` of the teacher's own file; `trains` if it is trained."""


def label_needs(config: Mapping[str, Any]) -> list[Any]:
    """Return what training and measuring a teacher ask of its set, as `LabelCheck.needs`."""
    teacher = config["teacher"]
    return [teacher["data"], teacher["task"], bool(teacher["validate"])]


def check_function(teacher: TeacherConfig) -> str:
    """Return the function that checks that a teacher that is trained has the labels it needs."""
    requires = teacher.require not in ("none", {})
    return f"teachers._label_checks:check_{'required_' if requires else ''}labels"


def plan_steps(resolved: ResolvedRecipe) -> Iterator[Step]:
    """Yield a step for each teacher, after that of the teacher whose boxes it takes."""
    teachers = resolved.recipe.teachers
    for name in sorted(teachers, key=lambda each: len(prompters(each, resolved.recipe))):
        teacher = teachers[name]
        # `require` is a gate on the result, not a part of it
        settings = teacher.model_dump(mode="json", exclude={"require", "calibrate", "domain", "labels"})
        domain = {"domain": teacher.domain_set} if teacher.domain_set else {}
        more = {**weights_of(teacher, f"teachers.{name}"), **_calibrated_on(teacher), **domain}
        config = {"name": name, "teacher": settings, "seed": resolved.recipe.seed, **more}
        named = (teacher.training_set, more.get("calibrate"), teacher.domain_set)
        sets = dict.fromkeys(each for each in named if each is not None)
        inputs = tuple(f"data.{each}" for each in sets)
        if teacher.prompted_by is not None:
            inputs += (f"teacher.{teacher.prompted_by}",)
        if isinstance(teacher, TrainingConfig) and teacher.training_set is not None:
            inputs += resized_inputs(resolved.recipe, f"teachers.{name}", [teacher.training_set], teacher.image_size)
        trains = "teacher.batch" if isinstance(teacher, FitConfig) else ""
        kind = dataclasses.replace(TEACHER, run=f"teachers.{teacher.kind}:make", trains=trains)
        if isinstance(teacher, FitConfig) and teacher.training_set is not None:
            kind = dataclasses.replace(kind, label_check=LabelCheck(label_needs, check_function(teacher)))
        yield Step(f"teacher.{name}", kind, ("teachers", name), config, inputs)


def _calibrated_on(teacher: TeacherConfig) -> dict[str, str]:
    """Return the set that a teacher is calibrated on, for its configuration; {} if it is not, or has no scores."""
    data = teacher.calibration_set
    return {"calibrate": data} if data is not None and tasks.label(LabelSpace(teacher.task)).can_be_calibrated else {}


def weights_of(section: TeacherConfig | FitConfig, place: str) -> dict[str, str]:
    """Return the digest of the weights that a section names, for its configuration: another file of the same name is
    another start. ConfigError, beginning with `place`, if they are not there.
    """
    weights = getattr(section, "weights", None)
    with error_context(f"{place}.weights"):
        return {"weights": weights_digest(weights)} if weights else {}
