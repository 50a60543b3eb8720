"""What the folders below `labels/` are called: one for each version of a teacher, and of the student's heads."""

from __future__ import annotations

import re

DIGITS = 12
"""Of the digest of the artifact whose labels they are."""
NAME = re.compile(rf"[^/]+-[0-9a-f]{{{DIGITS}}}")
STUDENT = "student-"
LABELLING = ("label", "student.labels")
"""The steps that label the pool: by its teachers, and by the student."""


def store_name(maker: str, digest: str) -> str:
    """The folder of the labels that a maker, a teacher or `student_maker`, made at the version with this digest."""
    return f"{maker}-{digest[:DIGITS]}"


def student_maker(head: str) -> str:
    """What the student's own labels for a teacher's task go by. No teacher's name has a dash."""
    return f"{STUDENT}{head}"


def is_student(maker: str) -> bool:
    """Whether labels that go by this name are the student's own."""
    return maker.startswith(STUDENT)


def teacher_of(maker: str) -> str:
    """The teacher that made the labels, or that the student learned from when it made them."""
    return maker.removeprefix(STUDENT)


def maker_of(store: str) -> str:
    """Whose labels a folder holds, whatever the version."""
    return store[: -DIGITS - 1]


def version_of(store: str) -> str:
    """What the digest begins with that a folder is named after."""
    return store[-DIGITS:]
