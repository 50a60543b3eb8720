"""The other labels that those of a head are weighted by: of another teacher, or of the student of the round before."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping

import numpy as np

from ingest.label_precedence import LabelPrecedence
from pipeline.data.dataset import Disagreement, ImageDataset, LabelSource
from pipeline.errors import ConfigError
from pipeline.recipe.student import PREVIOUS_STUDENT, StudentConfig
from pipeline.steps.artifact import Inputs
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import LabelSpace
from pipeline.stores.naming import is_student, is_student_labels, learned_labels, student_maker
from student.head import StudentHead
from tasks.teacher import Teacher

MEASURED_IMAGES = 500
"""Images of the pool that a mean weight is of, at most."""


class ComparedLabels:
    """Adds, to sources of pseudo labels, the labels that the recipe says they are compared with.

    Without a student of a round before, those that are compared with its labels stay as they are; so do labels that a
    student made in a teacher's place, and those that would be compared with such labels of another teacher.
    """

    def __init__(self, config: StudentConfig, heads: Mapping[str, StudentHead], inputs: Inputs) -> None:
        self.config, self.heads = config.disagreement, heads
        steps = {PREVIOUS_STUDENT: next(filter(is_student_labels, inputs.artifacts), None)}
        teachers = learned_labels(inputs.artifacts)
        for name, compared in self.config.items():
            if compared.against != PREVIOUS_STUDENT and name in heads:
                other = Teacher.load(inputs[f"teacher.{compared.against}"]).space
                check_comparable(name, heads[name].space, compared.against, other)
        self._labels = {
            against: LabelPrecedence("pseudo_only", {}, {}, inputs.artifacts, step)
            for against in {compared.against for compared in self.config.values()}
            if (step := steps.get(against, teachers)) is not None
        }

    def add_to(self, source: LabelSource, teacher: str, dataset: str, shard: ImageShard) -> LabelSource:
        """Return the source of a teacher's pseudo labels of a shard with what they are weighted by, if anything."""
        compared = self.config.get(teacher)
        if compared is None or compared.against not in self._labels or _is_students(source):
            return source
        maker = student_maker(teacher) if compared.against == PREVIOUS_STUDENT else compared.against
        other = dataclasses.replace(self.heads[teacher], teacher=maker, threshold=0.0, applicability=0.0)
        for ranked in self._labels[compared.against].sources(other, dataset, shard):
            if compared.against != PREVIOUS_STUDENT and _is_students(ranked.source):
                break  # they took the place of the other teacher's
            return dataclasses.replace(source, disagreement=Disagreement(ranked.source, compared.mode))
        return source


def _is_students(source: LabelSource) -> bool:
    """Return True for labels that a student of a round before made in a teacher's place."""
    return source.origin is not None and is_student(source.origin.origin_name)


def check_comparable(teacher: str, space: LabelSpace, other: str, other_space: LabelSpace) -> None:
    """Raise ConfigError unless labels of two teachers mean the same, so that their distance does."""
    if space == other_space:
        return
    differing = next(
        name for name in ("task", "classes", "scale", "skeleton") if getattr(space, name) != getattr(other_space, name)
    )
    found = [f"{getattr(each, differing)!r:.80}" for each in (space, other_space)]
    raise ConfigError(
        f"student.disagreement.{teacher}: labels of teachers {teacher!r} and {other!r} can't be compared: their "
        f"{differing} differ, {found[0]} and {found[1]}. Name a teacher of the same labels, or `{PREVIOUS_STUDENT}`."
    )


def mean_weights(dataset: ImageDataset) -> dict[str, float]:
    """Return the mean weight of the labels that are compared with others, by head, of some of the images."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), MEASURED_IMAGES)).astype(int))
    found: dict[str, list[float]] = {}
    for index in chosen.tolist():
        for head, weight in dataset.weights(index).items():
            found.setdefault(head, []).append(weight)
    return {head: round(statistics.fmean(weights), 4) for head, weights in found.items()}
