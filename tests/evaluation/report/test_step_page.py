"""A step's page: its leading number first, then its curve and a picture; no torch, and little to store."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evaluation.report import step_page as module
from evaluation.report.run_record import RunRecord, TrainingLog
from evaluation.report.step_page import StepPage, step_page
from pipeline.storage.path import StoragePath

if TYPE_CHECKING:
    from tests.conftest import World

MOST_BYTES = 200_000
IMAGE = re.compile(r"!\[[^]]*\]\(data:image/(svg\+xml|jpeg);base64,([^)]*)\)")


@pytest.fixture
def record(world: World, tmp_path: Path) -> RunRecord:
    return RunRecord(StoragePath.of(str(tmp_path)), world.artifacts)


def page_of(world: World, record: RunRecord, step: str) -> StepPage:
    """Return the page of a step, made of what a task run has: its inputs and its result."""
    artifacts = {name: world.artifacts[name] for name in (*world.steps[step].inputs, step)}
    return step_page(RunRecord(record.folder, artifacts), step)


def test_step_page_of_a_trained_teacher_has_scores_curve_and_picture(world: World, record: RunRecord) -> None:
    page = page_of(world, record, "teacher.masks")
    sentence, *pictures = page.card.split("\n\n")
    assert re.match(r"miou \d\.\d{3}, trivial baseline \d\.\d{3}, \d+ held-out images; ", sentence)
    assert [IMAGE.fullmatch(each)[1] for each in pictures] == ["svg+xml", "jpeg"]  # type: ignore[index]
    assert page.body.startswith("| metric | teacher | baseline |\n")
    assert "## Images" in page.body
    assert f"`{world.artifacts['teacher.masks']}`" in page.body


def test_step_page_of_a_teacher_without_data_has_no_picture(world: World, record: RunRecord) -> None:
    page = page_of(world, record, "teacher.gabor")
    assert not IMAGE.search(page.card + page.body)


def test_step_page_of_every_step_is_small_and_starts_with_a_sentence(world: World, record: RunRecord) -> None:
    for step in world.artifacts:
        page = page_of(world, record, step)
        assert not page.card.startswith(("!", "|")), step
        assert len(page.card) + len(page.body) < MOST_BYTES, step
        for _, data in IMAGE.findall(page.card + page.body):
            base64.b64decode(data, validate=True)


def test_step_page_draws_no_more_than_some_curves(
    world: World, record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"step": 1, "loss": 6.0, "losses": {"a": 1.0, "b": 2.0, "c": 3.0}, "lr": 0.1}]
    monkeypatch.setattr(TrainingLog, "of", lambda artifact: TrainingLog(lines))
    monkeypatch.setattr(module, "MAX_CURVES", 2)
    page = page_of(world, record, "teacher.boxes")
    assert (page.card + page.body).count("data:image/svg+xml") == 2
    assert "## Curves" in page.body


def test_step_page_loads_no_torch() -> None:
    program = "import sys, evaluation.report.step_page; print({'torch', 'prefect'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
