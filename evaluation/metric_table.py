"""What the metrics of a run say: a line per metric with student, teacher and baseline side by side, and the outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ROLES = ("student", "teacher", "baseline")
NINE_TENTHS = 0.9
ARROWS = {"higher": "↑", "lower": "↓"}
MOST_NAMES = 8
"""Teachers that a sentence names; of more it gives the number."""


@dataclasses.dataclass(frozen=True)
class EvaluationTarget:
    """Where something was measured: a head's task on `n` images of one split of one set, and how."""

    head: str
    task: str
    dataset: str
    split: str
    n: int
    seed: int
    protocol: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One metric in one place: its value for each of ROLES that was measured; `better` is "higher" or "lower"."""

    place: EvaluationTarget
    metric: str
    better: str
    values: Mapping[str, float]

    @property
    def share(self) -> float | None:
        """The student as a share of its teacher, above 1 if it is better; None where the two have no ratio."""
        student, teacher = self.values.get("student"), self.values.get("teacher")
        if student is None or teacher is None:
            return None
        over, under = (student, teacher) if self.better == "higher" else (teacher, student)
        return over / under if over >= 0 and under > 0 else None

    def ahead(self, role: str, other: str) -> bool | None:
        """Whether one role is strictly better than the other; None if one of them was not measured."""
        if role not in self.values or other not in self.values:
            return None
        difference = self.values[role] - self.values[other]
        return difference > 0 if self.better == "higher" else difference < 0


def read_lines(records: Iterable[Mapping[str, Any]]) -> tuple[list[Line], list[Mapping[str, Any]]]:
    """The records of `metrics.json` as lines, in their order; and those of other models than ROLES, as they are."""
    values: dict[tuple[EvaluationTarget, str, str], dict[str, float]] = {}
    others = []
    for record in records:
        role = str(record["model"]).partition(":")[0]
        if role not in ROLES:
            others.append(record)
            continue
        place = EvaluationTarget(**{field.name: record[field.name] for field in dataclasses.fields(EvaluationTarget)})
        values.setdefault((place, record["metric"], record["better"]), {})[role] = record["value"]
    return [Line(*key, found) for key, found in values.items()], others


def leading(lines: Iterable[Line]) -> list[Line]:
    """The first metric of every place, which is its task's leading one."""
    first: dict[EvaluationTarget, Line] = {}
    for line in lines:
        first.setdefault(line.place, line)
    return list(first.values())


def outcome(lines: Sequence[Line], home: Mapping[str, str | None]) -> list[str]:
    """Sentences on how the student did, by each place's leading metric.

    `home` has the set that each teacher was trained on, None for those trained elsewhere.
    """
    first = leading(lines)
    own = [line for line in first if home.get(line.place.head) == line.place.dataset]
    agreeing = [line for line in first if line not in own and "teacher" not in line.values]
    away = [line for line in first if line not in own and line not in agreeing]
    sentences = [_standing(own, "On the teachers' own held-out images")] if own else []
    for dataset in dict.fromkeys(line.place.dataset for line in away):
        there = [line for line in away if line.place.dataset == dataset]
        sentences.append(_standing(there, f"On {dataset}, which these teachers did not learn from"))
    if agreeing:
        sentences.append(_agreement(agreeing))
    return sentences or ["Nothing was measured."]


def fine_print(lines: Sequence[Line], home: Mapping[str, str | None]) -> str:
    """How the outcome was counted, and which teachers it says nothing of."""
    unmeasured = [head for head in home if head not in {line.place.head for line in lines}]
    counted = "Counted by the leading metric of each task."
    return f"{counted} Not measured: {', '.join(unmeasured)}." if unmeasured else counted


def _standing(lines: Sequence[Line], images: str) -> str:
    beaten = [line.place.head for line in lines if line.ahead("student", "baseline")]
    near = [line.place.head for line in lines if (line.share or 0) >= NINE_TENTHS]
    passed = [line.place.head for line in lines if line.ahead("student", "teacher")]
    tasks = "tasks" if len(lines) > 1 else "task"
    return (
        f"{images}, the student beats the trivial baseline on {_some(beaten)} of {len(lines)} {tasks}{_named(beaten)}, "
        f"reaches nine tenths of its teacher on {_some(near)}{_named(near)} "
        f"and is better than its teacher on {_some(passed)}{_named(passed)}."
    )


def _agreement(lines: Sequence[Line]) -> str:
    closer = [line.place.head for line in lines if line.ahead("student", "baseline")]
    teachers = ", ".join(line.place.head for line in lines)
    return (
        f"No set has true labels for {teachers}: measured by its agreement with them, the student beats the trivial "
        f"baseline on {_some(closer)} of {len(lines)}{_named(closer)}."
    )


def _some(heads: Sequence[str]) -> str:
    return str(len(heads)) if heads else "none"


def _named(heads: Sequence[str]) -> str:
    return f" ({', '.join(heads)})" if 0 < len(heads) <= MOST_NAMES else ""


def weak_teachers(lines: Iterable[Line]) -> list[str]:
    """A sentence for every teacher that is no better than the constant answer by its leading metric."""
    return [
        f"Teacher {line.place.head} is no better than the trivial baseline on {line.place.dataset}/{line.place.split}: "
        f"{line.metric} {line.values['teacher']:.3f} against {line.values['baseline']:.3f}."
        for line in leading(lines)
        if line.ahead("teacher", "baseline") is False
    ]
