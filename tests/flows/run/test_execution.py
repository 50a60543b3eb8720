"""Trackers of a run: each in a folder of its own, and none of them fails it."""

from __future__ import annotations

from pathlib import Path

import pytest

import must
from evaluation.report.results import warnings
from evaluation.report.run_record import RunRecord
from evaluation.trackers import tracker
from flows.plan.selection import Selection
from tests.flows.tiny import events

TRACKERS = "runtime.trackers=[tensorboard, wandb, mlflow]"


def test_run_with_trackers_writes_each_into_its_own_folder(recipe: Path, up_to_label: Path) -> None:
    for name in ("tensorboard", "wandb", "mlflow"):
        pytest.importorskip(tracker(name).PACKAGE)
    outcome = must.run(recipe, up_to_label, [TRACKERS], Selection("label"))
    assert outcome.folder is not None
    folder = Path(str(outcome.folder))
    assert list((folder / "tensorboard" / "teacher.masks").iterdir())
    assert list(folder.glob(f"wandb/offline-run-*-{folder.name}/run-{folder.name}.wandb"))
    assert (folder / "mlflow" / "mlflow.db").stat().st_size
    assert not [event for event in events(up_to_label) if event["event"] == "trackers"]


def test_tracker_that_fails_is_told_and_leaves_the_others_alone(
    recipe: Path, up_to_label: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: RunRecord, folder: Path) -> None:
        raise OSError("the disk is full")

    def write(run: RunRecord, folder: Path) -> None:
        (folder / "numbers").touch()

    for name, stub in (("tensorboard", fail), ("mlflow", write)):
        monkeypatch.setattr(tracker(name), "PACKAGE", "json")
        monkeypatch.setattr(tracker(name), "write", stub)
    outcome = must.run(recipe, up_to_label, ["runtime.trackers=[tensorboard, mlflow]"], Selection("label"))
    assert outcome.folder is not None
    assert (Path(str(outcome.folder)) / "mlflow" / "numbers").exists()
    [event] = [event for event in events(up_to_label) if event["event"] == "trackers"]
    assert (event["tracker"], event["error"]) == ("tensorboard", "OSError: the disk is full")
    sentences = map(str, warnings(RunRecord(outcome.folder, outcome.artifacts)))
    assert "The tracker tensorboard wrote nothing: OSError: the disk is full" in sentences
