"""Names of the folders below `labels/`: one per version of a teacher, and of each head of the student.

Such a folder is a label store, and its maker a teacher or a head of the student.
"""

from __future__ import annotations

import re

DIGITS = 12
"""Hex digits of a store's name, taken from the digest of the artifact that made the labels."""
STUDENT_PREFIX = "student-"
NAME = re.compile(rf"({STUDENT_PREFIX})?\w+-[0-9a-f]{{{DIGITS}}}")
LABEL_STEP, STUDENT_LABEL_STEP = "label", "student.labels"
LABELLING = (LABEL_STEP, STUDENT_LABEL_STEP)
"""Steps that label the pool: with its teachers, and with the student."""


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
