"""A teacher trained on one labelled set: any timm backbone with one head, by the one loop."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import require_one_of
from pipeline.recipe.teacher import TeacherConfig, TrainingConfig
from pipeline.steps import ranks
from pipeline.steps.artifact import Inputs, read_json

if TYPE_CHECKING:
    from tasks.prediction import Predictor


class Config(TeacherConfig, TrainingConfig):
    """A task, the set to learn it from, and a schedule."""

    kind: Literal["supervised"] = "supervised"
    data: str
    """The set it learns from, by its name under `data`."""

    def backbone_name(self) -> str:
        return self.backbone

    def check(self) -> None:
        """The metrics to reach are some of the task's."""
        better = importlib.import_module(f"tasks.{self.task}.model").TaskModel.better
        for metric in self.require:
            require_one_of(metric, better, "require: metric")


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Train on the set's `train` split and measure on its held-out split: the metrics go into the manifest.

    Of several processes that train together, the first writes and measures; the others return nothing. Raises
    ConfigError if the set has no labels of the task, DataError if the loss stops being finite.
    """
    from ingest.dataset import IngestedSet, teacher_space
    from ingest.true_labels import held_out_keys, true_label_dataset
    from tasks.network import build_network
    from tasks.prediction import network_predictor
    from tasks.scoring import score
    from tasks.teacher import Teacher, TeacherSchedule
    from tasks.training import TrainingPlan, WeightedSum, train_network

    name, teacher = config["name"], Config.model_validate(config["teacher"])
    found = IngestedSet(inputs[f"data.{teacher.data}"])
    space = teacher_space(name, teacher.task, teacher.data, found.spaces)
    network = build_network(teacher, {name: space}, config["seed"])
    dataset = true_label_dataset(found, "train", {name: teacher.task}, held_out_keys(found))
    plan = TrainingPlan(f"teacher.{name}", teacher, teacher.augment, config["seed"], out)
    trained = train_network(network, WeightedSum({name: 1.0}), dataset, plan, inputs.runtime)
    if not ranks.is_first():
        return {}
    network.cpu().save(out)
    split = found.held_out_split("val", teacher.task)
    scores: dict[str, float] = {}
    if split:
        predictor = network_predictor(network).setup(inputs.runtime, read_json(out / "model.json"))
        scores = score(predictor, true_label_dataset(found, split, {name: teacher.task}), {name: name}, inputs.runtime)
    Teacher("supervised", space, teacher.data, TeacherSchedule(teacher.batch, teacher.lr), scores).write(out)
    return {"images": len(dataset), "split": split, "scores": scores, **trained.counts()}


def load(folder: Path) -> Predictor:
    """The trained teacher."""
    from tasks.network import Network
    from tasks.prediction import network_predictor

    return network_predictor(Network.load(folder))
