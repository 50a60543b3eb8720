"""Lines on how far a training is, in the terminal and in the log of its step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe.base import FitConfig, ValidateConfig
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.training.objective import TrainingJob
from pipeline.training.progress import TrainingProgress, describe_time
from pipeline.training.validation import Validation
from tests.pipeline.training.tiny_jobs import STEPS, Linears, NumberedStream, train_with_result

LINE = r"loss [\d.]+, \d+ images/s, [\d.]+ (s|min|h) left"


def lines_of(out: Path, **fields: Any) -> tuple[list[str], list[str]]:
    """Train, and return the lines of progress and of the log."""
    shown: list[str] = []
    logged: list[str] = []
    runtime = Runtime(Root.of(out), "cpu", "32", 1, progress=lambda *line: shown.append(line[2]), log=logged.append)
    train_with_result(out, Linears(), runtime, **fields)
    return shown, logged


def test_training_progress_tells_epoch_rate_and_time_left(tmp_path: Path) -> None:
    shown: list[str] = []
    logged: list[str] = []
    runtime = Runtime(Root.of(tmp_path), progress=lambda *line: shown.append(line[2]), log=logged.append)
    config = FitConfig(epochs=2.5, batch=4)
    job = TrainingJob("teacher.t", Linears(), NumberedStream(batch=4), 10, tmp_path, config, 0)
    progress = TrainingProgress(job, runtime, 2)
    for step in range(3, 11):
        progress.report(step, {"loss": 0.5}, 98.3, is_last=step == 10)
    assert all(re.fullmatch(rf"epoch [123]/3, {LINE}", line) for line in shown), shown
    assert ", loss 0.500, 98 images/s, " in shown[0]
    assert [line.split(",")[0].split(" teacher.t: ")[1] for line in logged] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_training_progress_counts_steps_where_the_recipe_does(tmp_path: Path) -> None:
    shown, logged = lines_of(tmp_path)
    assert re.fullmatch(rf"step {STEPS}/{STEPS}, {LINE}", shown[-1]), shown[-1]
    assert 1 <= len(logged) <= 10
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d teacher\.t: step {STEPS}/{STEPS}, {LINE}", logged[-1])


def test_training_progress_shows_the_last_validation(tmp_path: Path) -> None:
    validation = Validation(ValidateConfig(every=2), lambda model, compute: {"miou": 0.25}, "miou", "higher")
    shown, logged = lines_of(tmp_path, validation=validation)
    assert "miou" not in shown[0]
    assert all(line.endswith(" left, miou 0.250") for line in shown[1:])
    assert logged[-1].endswith(", miou 0.250")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59, "59 s"), (725, "12 min"), (12600, "3.5 h")])
def test_describe_time_has_two_digits_or_so(seconds: float, text: str) -> None:
    assert describe_time(seconds) == text
