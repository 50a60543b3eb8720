"""Reading back a run: its time, its steps, and their training logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.report.run_record import TOTAL, RunRecord, TrainingCurve, TrainingLog
from pipeline.steps.artifact import Artifact, contents, write_json
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root


def log_line(step: int, total: float = 0.0, **parts: float) -> dict[str, Any]:
    return {"step": step, "loss": total, "losses": parts, "lr": 0.1, "images_per_s": 10.0, "waited_s": 0.5 * step}


def test_losses_come_by_head_with_the_total_first() -> None:
    log = TrainingLog([log_line(1, things=1.0, depth=2.0, total=3.0), log_line(2, depth=1.0, total=1.0)])
    losses = log.losses()
    assert list(losses) == [TOTAL, "things", "depth"]
    assert losses["things"] == [(1, 1.0)], "a step without a label for it has no such loss"
    assert losses["depth"] == [(1, 2.0), (2, 1.0)]


def test_losses_have_a_single_loss_once() -> None:
    assert list(TrainingLog([log_line(1, depth=2.0, total=2.0)]).losses()) == [TOTAL]
    assert list(TrainingLog([log_line(1, depth=2.0, total=1.0)]).losses()) == [TOTAL, "depth"]
    assert TrainingLog([]).losses() == {}


def test_waiting_share_is_of_the_steps_time_and_survives_a_resume() -> None:
    lines = [log_line(1), log_line(2), {**log_line(3), "waited_s": 0.5}]  # resumed: the clock began again
    assert TrainingLog(lines).waiting_share(batch=20) == pytest.approx(1.5 / 6.0)
    assert TrainingLog([]).waiting_share(batch=20) is None


def test_training_log_that_is_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "train.jsonl").write_text(json.dumps(log_line(1, total=1.0)) + '\n{"step": 2, "tot')
    files = contents(tmp_path)["files"]
    assert len(TrainingLog.of(Artifact(Root.of(tmp_path), "", {"files": files})).lines) == 1
    assert TrainingLog.of(Artifact(Root.of(tmp_path), "elsewhere", {"files": {}})).lines == []


def test_run_record_reads_time_and_steps_from_the_events(tmp_path: Path) -> None:
    events = [
        {"time": 100.0, "event": "reused", "step": "pool"},
        {"time": 101.0, "event": "started", "step": "student"},
        {"time": 131.0, "event": "made", "step": "student"},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    write_json(tmp_path / "plan.json", [{"step": "student", "action": "run", "why": "new pool"}])
    artifacts = {name: Artifact(Root.of(tmp_path), name, {"seconds": 30.0}) for name in ("pool", "student")}
    run = RunRecord(StoragePath.of(str(tmp_path)), artifacts)
    assert run.seconds() == 31.0
    assert [(step.step, step.reused, step.why) for step in run.steps()] == [
        ("pool", True, ""),
        ("student", False, "new pool"),
    ]


def test_run_record_without_any_file_has_a_name_and_no_time(tmp_path: Path) -> None:
    run = RunRecord(StoragePath.of(str(tmp_path / "photos-1")), {})
    assert (run.name, run.seconds(), run.began(), run.metrics(), run.kept()) == ("photos-1", 0.0, None, [], {})


def test_losses_have_a_loss_that_is_the_total_once_beside_other_values() -> None:
    lines = [{"step": step, "loss": 1.0, "losses": {"simclr": 1.0}} for step in (1, 2)]
    lines[0]["losses"] = {"simclr": 1.0, "feature spread": 0.4}
    assert TrainingLog(lines).losses() == {TOTAL: [(1, 1.0), (2, 1.0)], "feature spread": [(1, 0.4)]}


def test_curves_are_losses_other_values_and_the_first_metric_on_the_way() -> None:
    lines = [log_line(step, total=3.0, things=1.0, depth=2.0) for step in (1, 2)]
    lines[0]["losses"]["feature rank"] = 8.0  # a single value is no curve
    lines[1]["validation"] = {"miou": 0.5, "accuracy": 0.6}
    total, *others = TrainingLog(lines).curves("loss")
    assert total == TrainingCurve("loss", [(1, 3.0), (2, 3.0)])
    assert [(curve.title, curve.quantity) for curve in others] == [
        ("things", "loss"),
        ("depth", "loss"),
        ("on the way: validation", "miou on held-out images"),
    ]
    assert [curve.title for curve in TrainingLog(lines).curves("masks", "masks: ")][-1] == "masks: validation"


def test_recipe_is_that_of_the_run(tmp_path: Path) -> None:
    assert RunRecord(StoragePath.of(str(tmp_path)), {}).recipe == {}
    (tmp_path / "recipe.yaml").write_text("name: photos\nseed: 3\n")
    run = RunRecord(StoragePath.of(str(tmp_path)), {})
    assert (run.recipe, run.name) == ({"name": "photos", "seed": 3}, "photos")
