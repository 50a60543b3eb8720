"""Step that measures student, teachers and a trivial baseline on the same held-out images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ingest.dataset import IngestedSet
from ingest.true_labels import dataset_shards, held_out_keys, true_label_dataset
from pipeline.data.dataset import ImageDataset
from pipeline.errors import error_context
from pipeline.steps.artifact import Artifact, Inputs, write_json
from pipeline.steps.runtime import Runtime
from tasks.prediction import Predictor, load_network
from tasks.scoring import measure_constant, measure_head, predict_all, undefined_reason
from tasks.task import Metric, Task
from tasks.teacher import Teacher, load_teacher

PROTOCOL = "held-out images, whole, resized to the model's square input; labels compared at the truth's resolution"
AGREEMENT = (
    "no set has true labels for this teacher: agreement with the teacher's own labels, on held-out images; "
    "the baseline is the constant that agrees best with these very labels"
)


def evaluate(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `metrics.json`: a record per teacher, set, model and metric; of one that is not defined, `why` not.

    A metric that is a mean over classes comes with its value for each of them.

    Each teacher, and the student's head for it, is measured on the set it was trained on and on those of
    `config["sets"]` that share its task and classes, on the held-out split `config["splits"]` or the other one. If no
    set has labels for a teacher, the student's agreement with it is measured instead.
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
    """One teacher to measure on one split of one set, against true labels or, without any, the student against it."""

    head: str
    artifact: Artifact
    set_name: str
    ingested: IngestedSet
    split: str
    teacher: Teacher
    trained_on: IngestedSet | None

    @property
    def has_truth(self) -> bool:
        return self.ingested.spaces.get(self.teacher.space.task) == self.teacher.space


def _trials(config: Mapping[str, Any], inputs: Inputs) -> Iterator[TeacherTrial]:
    sets = {name: IngestedSet(made) for name, made in inputs.of_kind("data").items()}
    for head, artifact in inputs.of_kind("teacher").items():
        teacher = Teacher.load(artifact)
        for name, split in _splits_to_measure(teacher, sets, config):
            yield TeacherTrial(head, artifact, name, sets[name], split, teacher, sets.get(teacher.data or ""))


def _splits_to_measure(
    teacher: Teacher, sets: Mapping[str, IngestedSet], config: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return (set, split) to measure a teacher on: its own set and `sets`, else all with its labels, else the first."""
    preferred, task = config["splits"], teacher.space.task
    labelled = {
        name: split
        for name, ingested in sets.items()
        if ingested.spaces.get(task) == teacher.space and (split := ingested.held_out_split(preferred, task))
    }
    named = [name for name in dict.fromkeys([teacher.data, *config["sets"]]) if name in labelled]
    if labelled:
        return [(name, labelled[name]) for name in named or labelled]
    return [(name, split) for name, ingested in sets.items() if (split := ingested.held_out_split(preferred))][:1]


def _measure(trial: TeacherTrial, student: Predictor, inputs: Inputs, seed: int) -> list[dict[str, Any]]:
    """Return the records of student, teacher and baseline on one set."""
    teacher = load_teacher(trial.artifact, inputs.runtime)
    compare = _against_truth if trial.has_truth else _against_teacher
    metrics, count = compare(trial, student, teacher, inputs.runtime)
    context = {
        "task": trial.teacher.space.task,
        "dataset": trial.set_name,
        "head": trial.head,
        "split": trial.split,
        "n": count,
        "seed": seed,
        "protocol": PROTOCOL if trial.has_truth else AGREEMENT,
    }
    return [
        {**context, "model": model, "metric": name, "better": better, **values}
        for model, metric in metrics.items()
        for name, better, values in _values(metric, teacher.heads[trial.head])
    ]


def _values(metric: Metric, task: Task) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each metric's name, better direction and value, also by class; None with a reason if there is none."""
    values, by_class = metric.compute(), metric.compute_by_class()
    for name, better in task.better.items():
        if not values:
            yield name, better, {"value": None, "why": undefined_reason(task.space.task), "classes": []}
            continue
        classes = [
            {"class": task.space.classes[index], "support": score.support, "value": score.values[name]}
            for index, score in by_class.items()
            if name in score.values
        ]
        yield name, better, {"value": values[name], "classes": classes}


Metrics = dict[str, Metric]
"""By model."""


def _against_truth(
    trial: TeacherTrial, student: Predictor, teacher: Predictor, runtime: Runtime
) -> tuple[Metrics, int]:
    head, task = trial.head, trial.teacher.space.task
    dataset = true_label_dataset(trial.ingested, trial.split, {head: task})
    models = {f"teacher:{head}": teacher} | ({"student": student} if head in student.heads else {})
    metrics = {model: _score(model, predictor, dataset, trial, runtime) for model, predictor in models.items()}
    if trial.trained_on:
        train = true_label_dataset(trial.trained_on, "train", {head: task}, held_out_keys(trial.trained_on))
        metrics["baseline"] = measure_constant(teacher.heads[head], head, train, dataset)
    return metrics, len(dataset)


def _score(model: str, predictor: Predictor, dataset: ImageDataset, trial: TeacherTrial, runtime: Runtime) -> Metric:
    with error_context(f"{model} on {trial.set_name}/{trial.split}"):
        return measure_head(predictor, dataset, trial.head, runtime)


def _against_teacher(
    trial: TeacherTrial, student: Predictor, teacher: Predictor, runtime: Runtime
) -> tuple[Metrics, int]:
    head = trial.head
    dataset = ImageDataset(dataset_shards(trial.ingested, trial.split, lambda shard: {}))
    if head not in student.heads:
        return {}, len(dataset)
    task, label = teacher.heads[head], trial.teacher.label
    rows = (label.encode(values[head]) for _, values in predict_all(teacher, dataset, runtime))
    truth = [label.decode(row, label.default_threshold) for row in rows]
    metric, constant, guess = task.metrics(), task.metrics(), task.constant_label(truth)
    for index, values in predict_all(student, dataset, runtime):
        metric.update(values[head], truth[index])
        constant.update(guess, truth[index])
    return {"student": metric, "baseline": constant}, len(dataset)
