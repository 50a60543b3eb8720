"""`StudentHead`: what a head of the student learns from, and how those labels are read. No torch."""

from __future__ import annotations

import dataclasses

from pipeline.stores.labels import LabelSpace
from tasks.teacher import TeacherSchedule


@dataclasses.dataclass(frozen=True)
class StudentHead:
    """A head of the student: the teacher that it learns from, and how that teacher's labels are read."""

    teacher: str
    space: LabelSpace
    data: str | None
    """The set that the teacher was trained on, whose true labels have the same label space; None if it was none."""
    schedule: TeacherSchedule | None
    """Batch and learning rate of the teacher's training; None if it was not trained here."""
    threshold: float
    """Smallest probability of a pseudo label that is kept, in [0, 1]; without a calibration, smallest score."""
    applicability: float = 0.0
    """Smallest applicability of a pseudo label that is kept, in [0, 1]."""
    is_live: bool = False
    """The teacher is asked while the student is trained, and has no labels on disk."""
