"""Metrics of a run, with student, teacher and baseline side by side, and their outcome in sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ROLES = ("student", "teacher", "baseline")
NINE_TENTHS = 0.9
ARROWS = {"higher": "↑", "lower": "↓"}
WEAK = {
    "teacher": "Teacher {} is no better than the trivial baseline",
    "student": "The student is no better than the trivial baseline at {}",
}
MAX_NAMES = 8
"""Teachers that a sentence names; if there are more, it only counts them."""


@dataclasses.dataclass(frozen=True)
class EvaluationTarget:
    """The subject of a metric: a head's task on `n` images of one split of one set, by a protocol."""

    head: str
    task: str
    dataset: str
    split: str
    n: int
    seed: int
    protocol: str


@dataclasses.dataclass(frozen=True)
class MetricLine:
    """One metric of one target: its value for each of ROLES that was measured; `better` is "higher" or "lower"."""

    target: EvaluationTarget
    metric: str
    better: str
    values: Mapping[str, float]

    @property
    def share(self) -> float | None:
        """The student's share of its teacher's lead over the trivial baseline: 0 is the baseline, 1 the teacher.

        None if one of the three was not measured, or the teacher is no better than the baseline.
        """
        if "student" not in self.values or not self.is_better("teacher", "baseline"):
            return None
        student, teacher, baseline = (self.values[role] for role in ROLES)
        return (student - baseline) / (teacher - baseline)

    def is_better(self, role: str, other: str) -> bool | None:
        """Return True if `role` is strictly better than `other`; None if one of them was not measured."""
        if role not in self.values or other not in self.values:
            return None
        difference = self.values[role] - self.values[other]
        return difference > 0 if self.better == "higher" else difference < 0


def read_lines(records: Iterable[Mapping[str, Any]]) -> tuple[list[MetricLine], list[Mapping[str, Any]]]:
    """Return the records of `metrics.json` as lines, and those of models other than ROLES as they are.

    Records without a value are left out: `undefined_metrics` tells of them.
    """
    values: dict[tuple[EvaluationTarget, str, str], dict[str, float]] = {}
    others = []
    for record in records:
        role = str(record["model"]).partition(":")[0]
        if role not in ROLES:
            others.append(record)
            continue
        if record["value"] is None:
            continue
        values.setdefault((_target(record), record["metric"], record["better"]), {})[role] = record["value"]
    return [MetricLine(*key, found) for key, found in values.items()], others


@dataclasses.dataclass(frozen=True)
class ClassLine:
    """The metrics of one class of a target, by metric, then by role."""

    name: str
    support: int
    """Images, boxes or pixels of the class in the truth."""
    values: dict[str, dict[str, float]]


def read_class_lines(records: Iterable[Mapping[str, Any]]) -> dict[EvaluationTarget, list[ClassLine]]:
    """Return the classes of each target that has several, the student's weakest by the leading metric first."""
    lines: dict[EvaluationTarget, dict[str, ClassLine]] = {}
    for record in records:
        role = str(record["model"]).partition(":")[0]
        for each in record.get("classes", ()) if role in ROLES else ():
            line = lines.setdefault(_target(record), {}).setdefault(
                each["class"], ClassLine(each["class"], each["support"], {})
            )
            line.values.setdefault(record["metric"], {})[role] = each["value"]
    return {
        target: sorted(by_class.values(), key=_leading_value) for target, by_class in lines.items() if len(by_class) > 1
    }


def _leading_value(line: ClassLine) -> float:
    """Return the first metric of the first role there is."""
    values = next(iter(line.values.values()))
    return next(values[role] for role in ROLES if role in values)


def _target(record: Mapping[str, Any]) -> EvaluationTarget:
    return EvaluationTarget(**{field.name: record[field.name] for field in dataclasses.fields(EvaluationTarget)})


def undefined_metrics(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each teacher and split on which nothing could be measured."""
    found = {(each["head"], each["dataset"], each["split"]): each for each in records if each["value"] is None}
    return [
        f"{head} could not be measured on {dataset}/{split}: {each['why']} ({each['task']}, images with labels: "
        f"{each['n']})."
        for (head, dataset, split), each in found.items()
    ]


def unmeasured_teachers(records: Iterable[Mapping[str, Any]], teachers: Iterable[str]) -> list[str]:
    """Return a sentence for each teacher that no set could measure the student or the teacher by."""
    measured = {record["head"] for record in records}
    return [
        f"{name} was not measured: no set has held-out images for it, or the student has no head for it."
        for name in teachers
        if name not in measured
    ]


def leading_lines(lines: Iterable[MetricLine]) -> list[MetricLine]:
    """Return the first metric of every target, which is its task's leading one."""
    first: dict[EvaluationTarget, MetricLine] = {}
    for line in lines:
        first.setdefault(line.target, line)
    return list(first.values())


def outcome_sentences(lines: Sequence[MetricLine], home: Mapping[str, str | None]) -> list[str]:
    """Return sentences on how the student did, by the leading metric of each target.

    Args:
        home: The set that each teacher was trained on, None for those trained elsewhere.
    """
    first = leading_lines(lines)
    own = [line for line in first if home.get(line.target.head) == line.target.dataset]
    without_truth = [line for line in first if line not in own and "teacher" not in line.values]
    away = [line for line in first if line not in own and line not in without_truth]
    sentences = [_wins_sentence(own, "On the teachers' own held-out images")] if own else []
    for dataset in dict.fromkeys(line.target.dataset for line in away):
        lines_there = [line for line in away if line.target.dataset == dataset]
        sentences.append(_wins_sentence(lines_there, f"On {dataset}, which these teachers did not learn from"))
    if without_truth:
        sentences.append(_agreement_sentence(without_truth))
    return sentences or ["Nothing was measured."]


def fine_print(lines: Sequence[MetricLine], home: Mapping[str, str | None]) -> str:
    """Return how the outcome was counted, and which teachers were not measured."""
    unmeasured = [head for head in home if head not in {line.target.head for line in lines}]
    counted = "Counted by the leading metric of each task."
    return f"{counted} Not measured: {', '.join(unmeasured)}." if unmeasured else counted


def _wins_sentence(lines: Sequence[MetricLine], images: str) -> str:
    beaten = [line.target.head for line in lines if line.is_better("student", "baseline")]
    near = [line.target.head for line in lines if (line.share or 0) >= NINE_TENTHS]
    passed = [line.target.head for line in lines if line.is_better("student", "teacher")]
    tasks = "tasks" if len(lines) > 1 else "task"
    return (
        f"{images}, the student beats the trivial baseline on {_count(beaten)} of {len(lines)} {tasks}"
        f"{_names(beaten)}, reaches nine tenths of its teacher's lead over that baseline on "
        f"{_count(near)}{_names(near)} "
        f"and is better than its teacher on {_count(passed)}{_names(passed)}."
    )


def _agreement_sentence(lines: Sequence[MetricLine]) -> str:
    closer = [line.target.head for line in lines if line.is_better("student", "baseline")]
    teachers = ", ".join(line.target.head for line in lines)
    return (
        f"No set has true labels for {teachers}: measured by its agreement with them, the student beats the trivial "
        f"baseline on {_count(closer)} of {len(lines)}{_names(closer)}."
    )


def _count(heads: Sequence[str]) -> str:
    return str(len(heads)) if heads else "none"


def _names(heads: Sequence[str]) -> str:
    return f" ({', '.join(heads)})" if 0 < len(heads) <= MAX_NAMES else ""


def weak_models(lines: Iterable[MetricLine]) -> list[str]:
    """Return a sentence for each target where teacher or student does not beat the baseline by the leading metric."""
    leading = leading_lines(lines)
    return [
        f"{text.format(line.target.head)} on {line.target.dataset}/{line.target.split}: {line.metric} "
        f"{line.values[role]:.3f} against {line.values['baseline']:.3f}."
        for role, text in WEAK.items()
        for line in leading
        if line.is_better(role, "baseline") is False
    ]
