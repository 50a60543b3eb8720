"""A run for trackers to write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evaluation.report.run_record import RunRecord
from pipeline.steps.artifact import LOG, Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from tests.steps import make_step

RECIPE = {
    "name": "photos",
    "seed": 7,
    "student": {"backbone": "resnet18", "image_size": 192, "thresholds": {}},
    "teachers": {"t": {"task": "segmentation"}, "u": {"task": "depth"}, "v": {"task": "depth"}},
}
METRICS = [
    {"task": "depth", "dataset": "rooms", "metric": "rmse", "model": "student", "value": 0.5},
    {"task": "depth", "dataset": "rooms", "metric": "rmse", "model": "teacher:depth", "value": None},
]


def leave_log(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Leave a training log of two steps, the second of which was validated."""
    lines = [
        {"step": 1, "loss": 2.0, "losses": {"a": 1.5, "b": 0.5}, "lr": 0.1},
        {"step": 2, "loss": 1.0, "losses": {"a": 1.0}, "lr": 0.05, "validation": {"miou": 0.25, "other": float("nan")}},
    ]
    (out / LOG).mkdir(exist_ok=True)
    (out / LOG / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return {}


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    """Return a run with a recipe, one training and a metric."""
    workspace = Workspace(Root.of(tmp_path / "root"))
    made: Artifact = workspace.make(
        make_step("teacher.t", f"{__name__}:leave_log", {}), Inputs({}, Runtime(workspace.root))
    )
    folder = StoragePath.of(str(tmp_path / "photos-20260102-030405"))
    folder.child("recipe.yaml").write(json.dumps(RECIPE).encode())
    folder.child("metrics.json").write(json.dumps(METRICS).encode())
    return RunRecord(folder, {"teacher.t": made})
