"""Gate before labelling: a teacher has to beat the trivial baseline, and to reach what the recipe requires of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import tasks
from pipeline.errors import DataError
from pipeline.steps.artifact import Artifact
from tasks.teacher import Teacher

Requirements = Mapping[str, Literal["none"] | Mapping[str, float]]
"""`require` of the recipe by teacher; those that state nothing are left out."""


def check_gate(required: Requirements, teachers: Mapping[str, Artifact]) -> None:
    """Raise DataError if a teacher is no better than the trivial baseline, or misses a metric that is required of it.

    Teachers without held-out metrics, such as published ones on no set's images, pass unless a metric is required.
    """
    for name, artifact in teachers.items():
        wanted = required.get(name, {})
        if wanted == "none":
            continue
        teacher = Teacher.load(artifact)
        better = tasks.model(teacher.space).better
        _check_baseline(name, teacher, better)
        for metric, limit in wanted.items():
            _check_metric(name, teacher, metric, limit, better)


def is_better(value: float, other: float, direction: str) -> bool:
    """Return True if a metric is strictly better than another value; `direction` is "higher" or "lower"."""
    return value > other if direction == "higher" else value < other


def _check_baseline(name: str, teacher: Teacher, better: Mapping[str, str]) -> None:
    metric = next(iter(better))
    if metric not in teacher.scores or metric not in teacher.baseline:
        return
    value, constant = teacher.scores[metric], teacher.baseline[metric]
    if not is_better(value, constant, better[metric]):
        raise DataError(
            f"Teacher {name!r} may not label: {metric} is {value:.3f} on its {teacher.held_out:,} held-out images, and "
            f"{constant:.3f} for the trivial baseline, one label for all images. {_improvement(teacher)}, leave it "
            f"out, or let it label all the same with teachers.{name}.require: none."
        )


def _check_metric(name: str, teacher: Teacher, metric: str, limit: float, better: Mapping[str, str]) -> None:
    if metric not in teacher.scores:
        measured_on = f"of set {teacher.data!r}" if teacher.data else f"of the set under teachers.{name}.calibrate"
        known = ", ".join(teacher.scores) or (
            f"none, as no held-out image {measured_on} has a label for {teacher.space.task!r} that "
            "tells anything: add such images, or leave require out"
        )
        raise DataError(f"teachers.{name}.require names {metric!r}; it was measured by: {known}.")
    value, direction = teacher.scores[metric], better[metric]
    if is_better(limit, value, direction):
        raise DataError(
            f"Teacher {name!r} may not label: {metric} is {value:.3f} on its held-out images, required {limit:g}. "
            f"{_improvement(teacher)}, or {'lower' if direction == 'higher' else 'raise'} "
            f"teachers.{name}.require.{metric}."
        )


def _improvement(teacher: Teacher) -> str:
    """Return what could make the teacher better."""
    return "Train it longer or on more data" if teacher.data else "Take other weights or prompts"
