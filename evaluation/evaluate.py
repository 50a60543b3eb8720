"""The step that measures student, teachers and a trivial baseline on the same held-out images."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import Inputs, read_json, write_json
from pipeline.labels import Value
from pipeline.loader import Library
from tasks.ingest import IngestedSet
from tasks.learning import network_predictor
from tasks.network import Network
from tasks.scoring import score
from tasks.shelves import held_out_keys, truth_library
from tasks.task import Task

PROTOCOL = "held-out images, whole, resized to the model's square input; labels compared at the truth's resolution"
BATCH = 16


def evaluate(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `metrics.json`: a record per model, task, set and metric; results are kept by teacher."""
    network = Network.load(inputs["student"].path)
    about = read_json(inputs["student"].path / "model.json")
    student = network_predictor(network).settle(inputs.runtime, about, BATCH)
    records = []
    for name, made in inputs.of_kind("teacher").items():
        teacher = read_json(made.path / "teacher.json")
        if teacher["data"] is None:
            continue
        found = IngestedSet(inputs[f"data.{teacher['data']}"])
        split, task = found.held_out(config["splits"]), teacher["space"]["task"]
        if split is None:
            continue
        inputs.runtime.progress("evaluate", 0.0, f"{name} on {teacher['data']}/{split}")
        library = truth_library(found, split, {name: task})
        predictor = importlib.import_module(f"teachers.{teacher['kind']}").load(made.path)
        predictor.settle(inputs.runtime, read_json(made.path / "model.json"), BATCH)
        models = {f"teacher:{name}": predictor} | ({"student": student} if name in student.heads else {})
        scores = {model: score(one, library, {name: name}, inputs.runtime) for model, one in models.items()}
        train = truth_library(found, "train", {name: task}, held_out_keys(found))
        scores["baseline"] = score_constant(predictor.heads[name], name, train, library)
        context = {
            "task": task,
            "dataset": teacher["data"],
            "head": name,
            "split": split,
            "n": len(library),
            "seed": config["seed"],
            "protocol": PROTOCOL,
        }
        records += records_of(scores, predictor.heads[name], context)
        inputs.runtime.check_stop("evaluate")
    write_json(out / "metrics.json", records)
    return {"records": len(records)}


def score_constant(task: Task, head: str, train: Library, library: Library) -> dict[str, float]:
    """The metrics of the best label that does not look at the image."""
    guess: Value = task.constant(train.values(index)[head] for index in range(len(train)))
    metric = task.metrics()
    for index in range(len(library)):
        metric.update(guess, library.values(index)[head])
    return metric.compute()


def records_of(
    scores: Mapping[str, Mapping[str, float]], task: Task, context: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One record per model and metric."""
    return [
        {**context, "model": model, "metric": metric, "value": value, "better": task.better[metric]}
        for model, found in scores.items()
        for metric, value in found.items()
    ]
