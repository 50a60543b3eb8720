"""MLflow reads again what its tracker wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.report.run_record import RunRecord
from evaluation.trackers import mlflow, scalars
from tests.evaluation.trackers.conftest import RECIPE

pytest.importorskip("mlflow")


def test_mlflow_writes_a_database_that_it_reads_again(
    run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - an extra

    monkeypatch.setattr(mlflow, "MAX_METRICS", 2)  # in several calls
    mlflow.write(run, tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("photos")
    assert experiment is not None
    [found] = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("photos-20260102-030405", "FINISHED")
    names = dict.fromkeys(f"{scalar.group}/{scalar.name}" for scalar in scalars(run))
    curves = {
        (name, point.step): point.value
        for name in names
        for point in client.get_metric_history(found.info.run_id, name)
    }
    assert curves == {(f"{group}/{name}", step): value for group, name, step, value in scalars(run)}
    assert found.data.params["student.image_size"] == str(RECIPE["student"]["image_size"])  # type: ignore[index]
    assert found.data.params["teachers.u.task"] == "depth"
    assert (found.data.tags["backbone"], found.data.tags["task"]) == ("resnet18", "depth, segmentation")


def test_mlflow_cuts_long_settings(run: RunRecord, tmp_path: Path) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - an extra

    run.folder.child("recipe.yaml").write(b'{"name": "photos", "stages": "' + b"x" * 7000 + b'"}')
    mlflow.write(RunRecord(run.folder, {}), tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [found] = client.search_runs(["1"])
    assert set(found.data.params["stages"]) == {"x"}
