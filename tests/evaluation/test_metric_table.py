"""Test the table of metrics and the sentences on it: directions, shares of the teacher, and winners."""

from __future__ import annotations

from typing import Any

import pytest

from evaluation.metric_table import (
    EvaluationTarget,
    MetricLine,
    fine_print,
    leading_lines,
    outcome_sentences,
    read_class_lines,
    read_lines,
    undefined_metrics,
    unmeasured_teachers,
    weak_models,
)


def record(model: str, value: float, **changes: Any) -> dict[str, Any]:
    record = {"task": "depth", "dataset": "rooms", "head": "depth", "split": "test", "n": 20, "seed": 0}
    return {
        **record,
        "protocol": "whole",
        "metric": "rmse",
        "better": "lower",
        "model": model,
        "value": value,
        **changes,
    }


def three(student: float, teacher: float, baseline: float, **changes: Any) -> list[dict[str, Any]]:
    values = {"teacher:depth": teacher, "student": student, "baseline": baseline}
    return [record(model, value, **changes) for model, value in values.items()]


def line(better: str, **values: float) -> MetricLine:
    return MetricLine(EvaluationTarget("depth", "depth", "rooms", "test", 20, 0, "whole"), "m", better, values)


@pytest.mark.parametrize(
    ("better", "student", "teacher", "baseline", "share"),
    [
        ("higher", 0.46, 0.5, 0.1, 0.9),
        ("higher", 0.6, 0.5, 0.1, 1.25),
        ("higher", 0.1, 0.5, 0.1, 0.0),
        ("higher", 0.0, 0.5, 0.1, -0.25),
        ("higher", -0.1, 0.5, -0.5, 0.4),
        ("lower", 2.0, 1.0, 3.0, 0.5),
        ("lower", 0.0, 1.0, 2.0, 2.0),
        ("higher", 0.9, 0.5, 0.5, None),
        ("higher", 0.1, 0.0, 0.5, None),
        ("lower", 1.0, 3.0, 2.0, None),
    ],
)
def test_metric_line_share_is_of_the_teachers_lead_over_the_baseline(
    better: str, student: float, teacher: float, baseline: float, share: float | None
) -> None:
    found = line(better, student=student, teacher=teacher, baseline=baseline).share
    assert found == (share if share is None else pytest.approx(share))


def test_read_class_lines_begins_with_the_weakest_of_the_student() -> None:
    def classes(**values: float) -> dict[str, Any]:
        return {
            "metric": "miou",
            "classes": [{"class": name, "support": 7, "value": value} for name, value in values.items()],
        }

    records = [
        record("teacher:depth", 0.5, **classes(road=0.4, sky=0.6)),
        record("student", 0.4, **classes(road=0.9, sky=0.2, tree=0.1)),
        record("student", 0.9, metric="pixel_accuracy", classes=[]),
        record("probe", 0.9, **classes(road=0.3, sky=0.3)),
    ]
    [lines] = read_class_lines(records).values()
    assert [(line.name, line.support, line.values) for line in lines] == [
        ("tree", 7, {"miou": {"student": 0.1}}),
        ("sky", 7, {"miou": {"teacher": 0.6, "student": 0.2}}),
        ("road", 7, {"miou": {"teacher": 0.4, "student": 0.9}}),
    ]


def test_read_class_lines_passes_over_targets_with_one_class_or_without() -> None:
    one = record("student", 0.5, classes=[{"class": "road", "support": 1, "value": 0.5}])
    assert read_class_lines([one, record("student", 2.0, classes=[], head="other")]) == {}


def test_metric_line_share_is_none_without_a_teacher() -> None:
    assert line("higher", student=0.5, baseline=0.1).share is None
    assert line("higher", student=0.5, teacher=0.6).share is None, "nor without a baseline"
    assert line("higher", teacher=0.6, baseline=0.1).share is None


def test_metric_line_is_better_follows_the_direction_and_is_strict() -> None:
    assert line("lower", student=1.0, baseline=2.0).is_better("student", "baseline") is True
    assert line("higher", student=1.0, baseline=2.0).is_better("student", "baseline") is False
    assert line("higher", student=2.0, baseline=2.0).is_better("student", "baseline") is False
    assert line("higher", student=2.0).is_better("student", "baseline") is None


def test_read_lines_makes_a_line_per_metric_and_loses_none() -> None:
    probe = record("linear probe", 0.7)
    lines, others = read_lines([*three(3.0, 2.0, 4.0), *three(0.3, 0.2, 0.1, metric="delta"), probe])
    assert [line.metric for line in lines] == ["rmse", "delta"]
    assert lines[0].values == {"teacher": 2.0, "student": 3.0, "baseline": 4.0}
    assert others == [probe]


def test_read_lines_separates_sets_and_protocols() -> None:
    lines, _ = read_lines([record("student", 1.0), record("student", 2.0, dataset="attic")])
    assert [line.values["student"] for line in lines] == [1.0, 2.0]
    lines, _ = read_lines([record("student", 1.0), record("student", 2.0, protocol="crops")])
    assert [line.values["student"] for line in lines] == [1.0, 2.0]


def test_leading_lines_takes_the_first_metric_of_a_target() -> None:
    lines, _ = read_lines([*three(1, 1, 1), *three(1, 1, 1, metric="delta"), *three(1, 1, 1, dataset="attic")])
    assert [(line.target.dataset, line.metric) for line in leading_lines(lines)] == [
        ("rooms", "rmse"),
        ("attic", "rmse"),
    ]


def test_outcome_sentences_count_and_name_heads() -> None:
    lines, _ = read_lines(
        [
            *three(2.1, 2.0, 4.0),
            *three(0.2, 0.9, 0.3, head="kinds", better="higher"),
            *three(1.0, 2.0, 1.5, dataset="attic"),
        ]
    )
    home = {"depth": "rooms", "kinds": "rooms", "gabor": None}
    own, away = outcome_sentences(lines, home)
    assert own == (
        "On the teachers' own held-out images, the student beats the trivial baseline on 1 of 2 tasks (depth), "
        "reaches nine tenths of its teacher's lead over that baseline on 1 (depth) and is better than its teacher on "
        "none."
    )
    assert away.startswith("On attic, which these teachers did not learn from, the student beats")
    assert away.endswith("is better than its teacher on 1 (depth).")
    assert fine_print(lines, home) == "Counted by the leading metric of each task. Not measured: gabor."
    assert "Not measured" not in fine_print(lines, {"depth": "rooms"})


def test_outcome_sentences_separate_agreement_with_teachers_without_truth() -> None:
    near, far = {"head": "gabor", "dataset": "rooms"}, {"head": "imagenet", "dataset": "rooms"}
    lines, _ = read_lines(
        [
            *three(2.1, 2.0, 4.0),
            *(record(model, value, **near) for model, value in (("student", 1.0), ("baseline", 2.0))),
            *(record(model, value, **far) for model, value in (("student", 3.0), ("baseline", 2.0))),
        ]
    )
    own, agreement = outcome_sentences(lines, {"depth": "rooms", "gabor": None, "imagenet": None})
    assert "1 of 1 task (depth)" in own
    assert agreement.startswith("No set has true labels for gabor, imagenet:")
    assert agreement.endswith("on 1 of 2 (gabor).")


def test_outcome_sentences_without_metrics() -> None:
    assert outcome_sentences([], {"gabor": None}) == ["Nothing was measured."]


def test_weak_models_are_named_with_both_values() -> None:
    lines, _ = read_lines([*three(1.0, 2.5, 2.5), *three(1.0, 2.0, 2.5, head="good")])
    (sentence,) = weak_models(lines)
    assert "Teacher depth" in sentence
    assert "rmse 2.500 against 2.500" in sentence


def test_undefined_metrics_are_sentences_and_no_lines() -> None:
    undefined = [
        {**each, "value": None, "why": "nothing is known in any label"}
        for each in three(0, 0, 0, head="m", dataset="w", n=8)
    ]
    lines, others = read_lines([*three(1, 2, 3), *undefined])
    assert [line.target.head for line in lines] == ["depth"]
    assert others == []
    assert undefined_metrics([*three(1, 2, 3), *undefined]) == [
        "m could not be measured on w/test: nothing is known in any label (depth, images with labels: 8)."
    ]


def test_unmeasured_teachers_are_those_without_a_record() -> None:
    assert [sentence.split()[0] for sentence in unmeasured_teachers(three(1, 2, 3), ["depth", "other"])] == ["other"]
