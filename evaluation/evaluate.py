"""The step that measures student, teachers and a trivial baseline on the same held-out images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Inputs, read_json, write_json
from pipeline.labels import Value
from pipeline.loader import Library
from tasks.ingest import IngestedSet
from tasks.learning import Predictor, network_predictor
from tasks.network import Network
from tasks.scoring import score
from tasks.shelves import held_out_keys, truth_library
from tasks.task import Task
from tasks.teacher import Teacher, load_teacher

PROTOCOL = "held-out images, whole, resized to the model's square input; labels compared at the truth's resolution"
BATCH = 16


def evaluate(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `metrics.json`: a record per model, task, set and metric; results are kept by teacher.

    Each teacher, and the student's head for it, is measured on the set it was trained on and on those of
    `config["sets"]` that share its task and classes, on the held-out split `config["splits"]` or the other one.
    """
    network = Network.load(inputs["student"].path)
    about = read_json(inputs["student"].path / "model.json")
    student = network_predictor(network).settle(inputs.runtime, about, BATCH)
    records: list[dict[str, Any]] = []
    trials = list(_trials(config, inputs))
    for number, trial in enumerate(trials):
        inputs.runtime.check_stop("evaluate")
        inputs.runtime.progress("evaluate", number / len(trials), f"{trial.head} on {trial.set_name}/{trial.split}")
        records += _measure(trial, student, inputs, config["seed"])
    write_json(out / "metrics.json", records)
    return {"records": len(records)}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One teacher on one set."""

    head: str
    made: Artifact
    set_name: str
    found: IngestedSet
    split: str
    task: str
    trained_on: IngestedSet | None


def _trials(config: Mapping[str, Any], inputs: Inputs) -> Iterator[Trial]:
    sets = {name: IngestedSet(made) for name, made in inputs.of_kind("data").items()}
    for head, made in inputs.of_kind("teacher").items():
        about = Teacher.read(made.path)
        space, own = about.space, [about.data] if about.data else []
        for name in dict.fromkeys(own + config["sets"]):
            split = sets[name].held_out(config["splits"])
            if split and sets[name].spaces.get(space.task) == space:
                yield Trial(head, made, name, sets[name], split, space.task, sets.get(about.data or ""))


def _measure(trial: Trial, student: Predictor, inputs: Inputs, seed: int) -> list[dict[str, Any]]:
    """The records of student, teacher and baseline on one set."""
    head, library = trial.head, truth_library(trial.found, trial.split, {trial.head: trial.task})
    teacher = load_teacher(trial.made.path, inputs.runtime, BATCH)
    models = {f"teacher:{head}": teacher} | ({"student": student} if head in student.heads else {})
    scores = {model: score(one, library, {head: head}, inputs.runtime) for model, one in models.items()}
    task = teacher.heads[head]
    if trial.trained_on:
        train = truth_library(trial.trained_on, "train", {head: trial.task}, held_out_keys(trial.trained_on))
        scores["baseline"] = score_constant(task, head, train, library)
    context = {
        "task": trial.task,
        "dataset": trial.set_name,
        "head": head,
        "split": trial.split,
        "n": len(library),
        "seed": seed,
        "protocol": PROTOCOL,
    }
    return records_of(scores, task, context)


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
