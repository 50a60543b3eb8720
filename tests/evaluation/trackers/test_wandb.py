"""The offline run that is written for Weights & Biases holds the numbers of a run."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluation.report.run_record import RunRecord
from evaluation.trackers import wandb
from tests.evaluation.trackers.conftest import RECIPE

pytest.importorskip("wandb")

BLOCK, HEADER, FILE_HEADER = 1 << 15, 7, 7
"""Of LevelDB's log format: bytes of a block, of the head of each piece of a record, and of the file's own."""
LAST_PIECES = (1, 4)
"""Types of a piece that a record ends with."""


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a `.wandb` file."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # noqa: PLC0415 - an extra

    data, at, whole = path.read_bytes(), FILE_HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in LAST_PIECES:
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def items(updates: Any) -> dict[str, Any]:
    """Return keys and values of a history, a summary or a configuration."""
    return {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in updates}


@pytest.fixture
def found(run: RunRecord, tmp_path: Path) -> list[Any]:
    """Return the records that are written of a run."""
    (tmp_path / "out").mkdir()
    wandb.write(run, tmp_path / "out")
    [path] = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert path.parent.name.startswith("offline-run-"), "`wandb sync` passes over others"
    return list(records(path))


def test_wandb_writes_an_offline_run_of_the_recipe(found: list[Any]) -> None:
    [made] = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert (made.project, made.run_id, made.display_name) == ("photos", *["photos-20260102-030405"] * 2)
    assert list(made.tags) == ["resnet18", "depth", "segmentation"]
    config = items(made.config.update)
    assert {key: config[key] for key in RECIPE} == RECIPE


def test_wandb_writes_curves_by_step_and_final_metrics(found: list[Any]) -> None:
    rows = [items(record.history.item) for record in found if record.WhichOneof("record_type") == "history"]
    assert [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows] == [
        {
            "teacher/t/step": 1,
            "teacher/t/loss": 2.0,
            "teacher/t/loss/a": 1.5,
            "teacher/t/loss/b": 0.5,
            "teacher/t/lr": 0.1,
        },
        {
            "teacher/t/step": 2,
            "teacher/t/loss": 1.0,
            "teacher/t/loss/a": 1.0,
            "teacher/t/lr": 0.05,
            "teacher/t/validation/miou": 0.25,
        },
    ]
    axes = [record.metric for record in found if record.metric.glob_name]
    assert [(axis.glob_name, axis.step_metric) for axis in axes] == [("teacher/t/*", "teacher/t/step")]
    summary: dict[str, Any] = {}
    for record in found:
        summary |= items(record.summary.update)
    assert summary["evaluate/student/depth/rooms/rmse"] == 0.5


def test_wandb_leaves_the_current_folder_alone(run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    wandb.write(run, tmp_path)
    assert os.listdir(tmp_path / "here") == []
