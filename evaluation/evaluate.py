"""The step that measures student, teachers and a trivial baseline on the same held-out images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tasks
from ingest.dataset import IngestedSet
from ingest.true_labels import dataset_shards, held_out_keys, true_label_dataset
from pipeline.data.dataset import ImageDataset
from pipeline.steps.artifact import Artifact, Inputs, write_json
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import Value
from tasks.prediction import Predictor, load_network
from tasks.scoring import predict_all, score
from tasks.task import Task
from tasks.teacher import Teacher, load_teacher

PROTOCOL = "held-out images, whole, resized to the model's square input; labels compared at the truth's resolution"
AGREEMENT = (
    "no set has true labels for this teacher: agreement with the teacher's own labels, on held-out images; "
    "the baseline is the constant that agrees best with these very labels"
)


def evaluate(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `metrics.json`: a record per model, task, set and metric; results are kept by teacher.

    Each teacher, and the student's head for it, is measured on the set it was trained on and on those of
    `config["sets"]` that share its task and classes, on the held-out split `config["splits"]` or the other one. Where
    no set has labels for a teacher, the student's agreement with it is measured instead.
    """
    student = load_network(inputs["student"], inputs.runtime)
    records: list[dict[str, Any]] = []
    trials = list(_trials(config, inputs))
    for number, trial in enumerate(trials):
        inputs.runtime.check_stop("evaluate")
        inputs.runtime.progress("evaluate", number / len(trials), f"{trial.head} on {trial.set_name}/{trial.split}")
        records += _measure(trial, student, inputs, config["seed"])
    write_json(out / "metrics.json", records)
    return {"records": len(records)}


@dataclasses.dataclass(frozen=True)
class TeacherTrial:
    """One teacher on one set: against its true labels, or, where nobody has any, the student against the teacher's."""

    head: str
    made: Artifact
    set_name: str
    found: IngestedSet
    split: str
    about: Teacher
    trained_on: IngestedSet | None

    @property
    def has_truth(self) -> bool:
        return self.found.spaces.get(self.about.space.task) == self.about.space


def _trials(config: Mapping[str, Any], inputs: Inputs) -> Iterator[TeacherTrial]:
    sets = {name: IngestedSet(made) for name, made in inputs.of_kind("data").items()}
    for head, made in inputs.of_kind("teacher").items():
        about = Teacher.load(made)
        for name, split in _places(about, sets, config):
            yield TeacherTrial(head, made, name, sets[name], split, about, sets.get(about.data or ""))


def _places(about: Teacher, sets: Mapping[str, IngestedSet], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(set, split) to measure a teacher on: those named for it, else all that have its labels, else the first set."""
    preferred, task = config["splits"], about.space.task
    labelled = {
        name: split
        for name, found in sets.items()
        if found.spaces.get(task) == about.space and (split := found.held_out_split(preferred, task))
    }
    named = [name for name in dict.fromkeys([about.data, *config["sets"]]) if name in labelled]
    if labelled:
        return [(name, labelled[name]) for name in named or labelled]
    return [(name, split) for name, found in sets.items() if (split := found.held_out_split(preferred))][:1]


def _measure(trial: TeacherTrial, student: Predictor, inputs: Inputs, seed: int) -> list[dict[str, Any]]:
    """The records of student, teacher and baseline on one set."""
    teacher = load_teacher(trial.made, inputs.runtime)
    how = _against_truth if trial.has_truth else _against_teacher
    scores, count = how(trial, student, teacher, inputs.runtime)
    context = {
        "task": trial.about.space.task,
        "dataset": trial.set_name,
        "head": trial.head,
        "split": trial.split,
        "n": count,
        "seed": seed,
        "protocol": PROTOCOL if trial.has_truth else AGREEMENT,
    }
    return records_of(scores, teacher.heads[trial.head], context)


Scores = dict[str, dict[str, float]]


def _against_truth(trial: TeacherTrial, student: Predictor, teacher: Predictor, runtime: Runtime) -> tuple[Scores, int]:
    head, task = trial.head, trial.about.space.task
    dataset = true_label_dataset(trial.found, trial.split, {head: task})
    models = {f"teacher:{head}": teacher} | ({"student": student} if head in student.heads else {})
    scores = {model: score(one, dataset, {head: head}, runtime) for model, one in models.items()}
    if trial.trained_on:
        train = true_label_dataset(trial.trained_on, "train", {head: task}, held_out_keys(trial.trained_on))
        scores["baseline"] = score_constant(teacher.heads[head], head, train, dataset)
    return scores, len(dataset)


def _against_teacher(
    trial: TeacherTrial, student: Predictor, teacher: Predictor, runtime: Runtime
) -> tuple[Scores, int]:
    head = trial.head
    dataset = ImageDataset(dataset_shards(trial.found, trial.split, lambda shard: {}))
    if head not in student.heads:
        return {}, len(dataset)
    task, label = teacher.heads[head], tasks.label(trial.about.space)
    rows = (label.encode(values[head]) for _, values in predict_all(teacher, dataset, runtime))
    said = [label.decode(row, label.default_threshold) for row in rows]
    metric, constant, guess = task.metrics(), task.metrics(), task.constant_label(said)
    for index, values in predict_all(student, dataset, runtime):
        metric.update(values[head], said[index])
        constant.update(guess, said[index])
    return {"student": metric.compute(), "baseline": constant.compute()}, len(dataset)


def score_constant(task: Task, head: str, train: ImageDataset, dataset: ImageDataset) -> dict[str, float]:
    """The metrics of the best label that does not look at the image."""
    guess: Value = task.constant_label(train.values(index)[head] for index in range(len(train)))
    metric = task.metrics()
    for index in range(len(dataset)):
        metric.update(guess, dataset.values(index)[head])
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
