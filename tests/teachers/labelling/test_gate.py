"""The gate before labelling: teachers no better than the trivial baseline, and those below what the recipe requires."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.steps.artifact import Artifact
from pipeline.stores.labels import LabelSpace
from tasks.teacher import Teacher
from teachers.labelling.gate import check_gate
from tests.disk import made_in

SCORES = {"abs_rel": 0.4, "delta_1.25": 0.5}
"""Of a teacher of depth: its leading metric is `delta_1.25`, the share of pixels that are about right."""


def depth_teacher(folder: Path, scores: dict[str, float], baseline: dict[str, float]) -> dict[str, Artifact]:
    out = folder / "out"
    out.mkdir()
    Teacher("supervised", LabelSpace("depth"), "rooms", scores=scores, baseline=baseline, held_out=24).write(out)
    return {"depth": made_in(out, "teacher.depth")}


@pytest.mark.parametrize("baseline", [{"abs_rel": 0.9, "delta_1.25": 0.71}, dict(SCORES)])
def test_check_gate_refuses_a_teacher_no_better_than_the_baseline(tmp_path: Path, baseline: dict[str, float]) -> None:
    teachers = depth_teacher(tmp_path, SCORES, baseline)
    constant = baseline["delta_1.25"]
    message = f"delta_1.25 is 0.500 on its 24 held-out images, and {constant:.3f} for the trivial baseline"
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        check_gate({}, teachers)
    assert "teachers.depth.require: none" in str(caught.value)
    check_gate({"depth": "none"}, teachers)


@pytest.mark.parametrize(
    ("scores", "baseline"),
    [(SCORES, {"abs_rel": 0.1, "delta_1.25": 0.49}), ({}, {}), (SCORES, {})],
    ids=["better by its leading metric", "not measured", "no baseline"],
)
def test_check_gate_lets_a_teacher_label(tmp_path: Path, scores: dict[str, float], baseline: dict[str, float]) -> None:
    check_gate({}, depth_teacher(tmp_path, scores, baseline))


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (
            {"abs_rel": 0.0},
            r"'depth' may not label: abs_rel is 0\.400 .* required 0\. .*, or raise teachers\.depth\.require\.abs_rel",
        ),
        (
            {"delta_1.25": 1.5},
            r"'depth' may not label: delta_1\.25 is 0\.500 .* or lower teachers\.depth\.require\.delta_1\.25",
        ),
        ({"miou": 0.5}, r"measured by: abs_rel, delta_1.25"),
    ],
)
def test_check_gate_refuses_a_teacher_below_a_required_metric(
    tmp_path: Path, limit: dict[str, Any], message: str
) -> None:
    teachers = depth_teacher(tmp_path, SCORES, {"abs_rel": 0.5, "delta_1.25": 0.4})
    with pytest.raises(DataError, match=message):
        check_gate({"depth": limit}, teachers)


def test_check_gate_lets_a_teacher_label_that_just_reaches_a_required_metric(tmp_path: Path) -> None:
    teachers = depth_teacher(tmp_path, SCORES, {"abs_rel": 0.5, "delta_1.25": 0.4})
    check_gate({"depth": SCORES}, teachers)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (
            {"ap": 0.1},
            r"'words' may not label: ap is 0\.100 .* required 0\.3\. Take other weights or prompts, or lower",
        ),
        ({}, r"measured by: none, as no held-out image of the set under teachers\.words\.calibrate has a label for"),
    ],
)
def test_check_gate_refuses_a_published_teacher_below_a_required_metric(
    tmp_path: Path, scores: dict[str, float], message: str
) -> None:
    Teacher("zeroshot", LabelSpace("detection", ("car",)), scores=scores, held_out=24).write(tmp_path)
    teachers = {"words": made_in(tmp_path, "teacher.words")}
    check_gate({}, teachers)
    with pytest.raises(DataError, match=message):
        check_gate({"words": {"ap": 0.3}}, teachers)
