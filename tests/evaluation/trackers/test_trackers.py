"""Trackers write the curves and numbers of a run from what its steps left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evaluation.report.run_record import RunRecord
from evaluation.trackers import Scalar, check_tracker_names, chosen_trackers, scalars, tensorboard, tracker
from pipeline.errors import ConfigError
from pipeline.steps.artifact import LOG, Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from tests.steps import make_step

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
    """Return a run with one training and a metric."""
    workspace = Workspace(Root.of(tmp_path / "root"))
    made: Artifact = workspace.make(
        make_step("teacher.t", f"{__name__}:leave_log", {}), Inputs({}, Runtime(workspace.root))
    )
    folder = StoragePath.of(str(tmp_path / "run"))
    folder.child("metrics.json").write(json.dumps(METRICS).encode())
    return RunRecord(folder, {"teacher.t": made})


def test_scalars_are_losses_rates_validations_and_final_metrics(run: RunRecord) -> None:
    assert list(scalars(run)) == [
        Scalar("teacher.t", "loss", 1, 2.0),
        Scalar("teacher.t", "loss", 2, 1.0),
        Scalar("teacher.t", "loss/a", 1, 1.5),
        Scalar("teacher.t", "loss/a", 2, 1.0),
        Scalar("teacher.t", "loss/b", 1, 0.5),
        Scalar("teacher.t", "lr", 1, 0.1),
        Scalar("teacher.t", "lr", 2, 0.05),
        Scalar("teacher.t", "validation/miou", 2, 0.25),
        Scalar("evaluate/student", "depth/rooms/rmse", 0, 0.5),
    ]


def test_tensorboard_writes_event_files_that_it_reads_again(run: RunRecord, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # noqa: PLC0415

    tensorboard.write(run, tmp_path / "out")
    found: dict[tuple[str, str, int], float] = {}
    for path in (tmp_path / "out").rglob("events.out.tfevents.*"):
        group = path.parent.relative_to(tmp_path / "out").as_posix()
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:  # the loader makes tensors of numbers
                found[group, value.tag, event.step] = value.tensor.float_val[0]
    assert found == pytest.approx({scalar[:3]: scalar.value for scalar in scalars(run)})


def test_chosen_trackers_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker("tensorboard"), "PACKAGE", "json")
    assert chosen_trackers(None) == chosen_trackers(["tensorboard"]) == ["tensorboard"]
    assert chosen_trackers([]) == []
    monkeypatch.setattr(tracker("tensorboard"), "PACKAGE", "not_there_at_all")
    assert chosen_trackers(None) == []
    with pytest.raises(ConfigError, match=r"names 'tensorboard', which needs the extra tensorboard: .*\[\] would do"):
        chosen_trackers(["tensorboard"])


def test_check_tracker_names_tells_typos() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.trackers: 'tensorbord' is unknown\. Did you mean 'tensorboard'"):
        check_tracker_names(["tensorbord"])
