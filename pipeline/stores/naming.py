"""Names of the folders below `labels/`: one per version of a teacher, and of each head of the student.

Such a folder is a label store, and its maker a teacher or a head of the student.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

DIGITS = 12
"""Hex digits of a store's name, taken from the digest of the artifact that made the labels."""
STUDENT_PREFIX = "student-"
NAME = re.compile(rf"({STUDENT_PREFIX})?\w+-[0-9a-f]{{{DIGITS}}}")
LABEL_STEP, STUDENT_LABEL_STEP = "label", "student.labels"
"""Steps that label the pool: with its teachers, and with the student."""
LABEL_INDEX = "labels.json"
"""The file in which such a step, or `label.2`, lists label shards."""


def round_student(number: int, rounds: int) -> str:
    """Return the step that trains the student of a round, from 1; that of the last one is `student`."""
    return "student" if number == rounds else f"student.{number}"


def round_labels(number: int) -> str:
    """Return the step that says which labels the student of a round learns, from 1: `label`, `label.2`, `label.3`."""
    return LABEL_STEP if number == 1 else f"{LABEL_STEP}.{number}"


def student_labels(student: str) -> str:
    """Return the step in which the student that a step trained labels the pool: `student.1.labels`."""
    return f"{student}.labels"


def labels_pool(step: str) -> bool:
    """Return True if a step of this name labels the pool, with its teachers or with the student of a round."""
    return step == LABEL_STEP or re.fullmatch(r"student(\.\d+)?\.labels", step) is not None


def is_student_labels(step: str) -> bool:
    """Return True if a student labels the pool in a step of this name: `student.labels`, `student.1.labels`."""
    return labels_pool(step) and step != LABEL_STEP


def learned_labels(inputs: Iterable[str]) -> str:
    """Return the one of a student's inputs, names of steps, that says which labels it learns."""
    return next(name for name in inputs if re.fullmatch(rf"{LABEL_STEP}(\.\d+)?", name))


def store_name(maker: str, digest: str) -> str:
    """Return the folder of the labels of a maker, a teacher or `student_maker`, at the version with this digest."""
    return f"{maker}-{digest[:DIGITS]}"


def student_maker(head: str) -> str:
    """Return the maker of the student's labels from the head of this teacher. No teacher's name has a dash."""
    return f"{STUDENT_PREFIX}{head}"


def is_student(maker: str) -> bool:
    """Return True if the maker is a head of the student."""
    return maker.startswith(STUDENT_PREFIX)


def teacher_of(maker: str) -> str:
    """Return the teacher that a maker is, or that the student's head learned from."""
    return maker.removeprefix(STUDENT_PREFIX)


def maker_of(store: str) -> str:
    """Return the maker of a store's labels."""
    return store[: -DIGITS - 1]


def version_of(store: str) -> str:
    """Return the first DIGITS of the digest of a store's maker."""
    return store[-DIGITS:]
