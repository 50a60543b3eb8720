"""The step that trains the student on the labels of all teachers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ingest.dataset import IngestedSet
from ingest.resized import read_resized
from ingest.validation import validation_sets
from pipeline.data.dataset import ImageDataset
from pipeline.data.statistics import own_statistics
from pipeline.errors import ConfigError
from pipeline.models.checkpoint import write_tensors
from pipeline.recipe.student import StudentConfig
from pipeline.steps import ranks
from pipeline.steps.artifact import Inputs, write_json
from student.dataset import count_rejected, heads_of, student_dataset
from student.disagreement import mean_weights
from student.loss_weights import build_loss_weighting, final_weights
from student.threshold_report import count_kept
from tasks.frozen_teacher import FrozenTeacher
from tasks.network import build_network
from tasks.teacher import open_teacher
from tasks.training import TrainingPlan, train_network


def train_student(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Train one network with a head per teacher; write it, its backbone under timm's keys, and the threshold report.

    Of several processes that train together, the first one writes them and returns the counts, the others {}.
    """
    student = StudentConfig.model_validate(config["student"])
    heads = heads_of(student, inputs)
    weighting = build_loss_weighting(student, heads)
    dataset = read_resized(student_dataset(student, heads, inputs), inputs)
    spaces = {name: head.space for name, head in heads.items()}
    network = build_network(student, spaces, config["seed"], own_statistics(dataset))
    validated = validation_images(config, inputs) if student.validate else {}
    live = {
        name: FrozenTeacher(open_teacher(inputs[f"teacher.{name}"])) for name, head in heads.items() if head.is_live
    }
    plan = TrainingPlan(config.get("name", "student"), student, student.augment, config["seed"], out, validated, live)
    trained = train_network(network, weighting, dataset, plan, inputs.runtime)
    if not ranks.is_first():
        return {}
    network.cpu().save(out)
    write_tensors(out / "backbone.safetensors", network.backbone.model.state_dict())
    kept = count_kept(heads, inputs)
    if student.labels == "true_only":  # then thresholds skew nothing
        kept = {name: {**share, "warning": None} for name, share in kept.items()}
    for name, weight in mean_weights(dataset).items() if student.disagreement else ():
        kept[name]["weight"] = weight
    write_json(out / "kept.json", kept)
    warnings = [f"{name}: {share['warning']}" for name, share in kept.items() if share["warning"]]
    untrained = network.untrained_parameters()
    warnings += _describe_untrained(untrained)
    warnings += _describe_unvalidated(config, validated) if student.validate else []
    counts = {"images": len(dataset), "weights": final_weights(weighting), "warnings": warnings, "untrained": untrained}
    return {**counts, **count_rejected(inputs), **trained.counts()}


def validation_images(config: Mapping[str, Any], inputs: Inputs) -> dict[str, ImageDataset]:
    """Return the images that the training is measured on, by head. Raises ConfigError if no teacher's set has any.

    `config["learned"]`: by teacher that learns from a set, the set and the task.
    """
    learned = {name: tuple(each) for name, each in config["learned"].items()}
    sets = {name: (data, IngestedSet(inputs[f"data.{data}"])) for name, (data, _) in learned.items()}
    return validation_sets(sets, {name: task for name, (_, task) in learned.items()})


def check_labels(config: Mapping[str, Any], inputs: Inputs) -> None:
    """Raise ConfigError if a student that is to be validated can't be, or one of true labels alone would have none.

    `config["learned"]` is there if it is validated; `config["true_sets"]`, `config["pooled"]`, the steps of sets with
    true labels and of the pool's sets, if it learns no others.
    """
    if "learned" in config:
        validation_images(config, inputs)
    if "true_sets" in config:
        true_keys, pooled = (_training_keys(config[steps], inputs) for steps in ("true_sets", "pooled"))
        if true_keys.isdisjoint(pooled):
            sets = ", ".join(step.removeprefix("data.") for step in config["true_sets"]) or "none"
            raise ConfigError(
                f"labels is 'true_only', but no training image of the sets with true labels ({sets}) is in the pool: "
                "name such a set under pool, or take labels: true_first."
            )


def _training_keys(steps: Sequence[str], inputs: Inputs) -> set[str]:
    """Return the keys of the training images of the sets that these steps ingest."""
    stores = [IngestedSet(inputs[step]).images("train") for step in steps]
    return {key for store in stores for shard in store.shards for key in shard.keys}


def _describe_unvalidated(config: Mapping[str, Any], validated: Mapping[str, ImageDataset]) -> list[str]:
    """Return a warning for each teacher whose set has no validation images: its head does not count in the mean."""
    return [
        f"{name}: the set {data!r} has no labelled images in a split 'val', so student.validate leaves this head out"
        for name, (data, _) in config["learned"].items()
        if name not in validated
    ]


def _describe_untrained(names: Sequence[str]) -> list[str]:
    """Return a warning if no head trains these parameters of the backbone."""
    if not names:
        return []
    parts = ", ".join(sorted({name.partition(".")[0] for name in names}))
    return [
        f"backbone: no head trains {parts} ({len(names)} parameters), which its vector depends on: probes, stages and "
        "exports read the initial weights there. A classification or multilabel teacher would train them."
    ]
