"""MLflow: a SQLite database with one run, which `mlflow ui` shows."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path

from evaluation.report.run_record import RunRecord
from evaluation.trackers import scalars, tags
from pipeline.steps.config_hash import flat

PACKAGE = "mlflow"
DATABASE = "mlflow.db"
MAX_METRICS, MAX_PARAMS = 1000, 100
"""Of one call, a limit of MLflow."""


def write(run: RunRecord, folder: Path) -> None:
    """Write `mlflow.db` into a folder: an experiment named after the recipe, with the run as its only one."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # noqa: PLC0415 - an extra
    from mlflow.entities import Metric, Param  # noqa: PLC0415

    logging.getLogger("mlflow.store").setLevel(logging.WARNING)  # it tells of each table that it creates
    now = round(time.time() * 1000)
    client = MlflowClient(f"sqlite:///{folder.resolve() / DATABASE}")
    experiment = client.create_experiment(run.name, artifact_location=str(folder / "artifacts"))
    began, words = run.began(), {name: ", ".join(group) for name, group in tags(run).items()}
    start = round(began.timestamp() * 1000) if began else now
    made = client.create_run(experiment, start, words, run.folder.name).info.run_id
    metrics = [Metric(_key(f"{group}/{name}"), value, now, step) for group, name, step, value in scalars(run)]
    params = [Param(_key(name), str(value)) for name, value in flat(run.recipe).items()]
    for start in range(0, len(metrics), MAX_METRICS):
        client.log_batch(made, metrics=metrics[start : start + MAX_METRICS])
    for start in range(0, len(params), MAX_PARAMS):
        client.log_batch(made, params=params[start : start + MAX_PARAMS])
    client.set_terminated(made)


def _key(name: str) -> str:
    """Return a name with the signs replaced that MLflow refuses."""
    return re.sub(r"[^\w./: -]", "_", name)
