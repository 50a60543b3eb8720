"""Supervised teacher: any timm backbone with one head, trained on one labelled set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from pipeline.recipe.base import NamedBackbone
from pipeline.recipe.teacher import CalibrateConfig, TeacherConfig, TrainingConfig
from pipeline.steps import ranks
from pipeline.steps.artifact import Inputs
from teachers._held_out import measure
from teachers._label_checks import training_images, validation_images

if TYPE_CHECKING:
    from tasks.prediction import Predictor


class Config(TeacherConfig, TrainingConfig):
    """A task, the labelled set to train on, and how to train."""

    readout = "maps"
    kind: Literal["supervised"] = "supervised"
    data: str
    """The set it is trained on, by its name under `data`."""
    trainable: Literal["all", "heads"] = "all"
    """Train the whole network, or its pyramid and head on a frozen backbone: several times as fast, and enough where
    the backbone's weights are good."""
    calibrate: CalibrateConfig | None = CalibrateConfig()
    """Calibrate its scores: by default on the set that it is trained on, or on another one, as in {data: street}; null
    for scores as they come."""

    @model_validator(mode="after")
    def _check_frozen(self) -> Config:
        if self.trainable == "heads" and self.weights is None:
            raise ValueError("trainable: heads would leave the backbone's random weights as they are: give weights")
        return self

    def backbone_name(self) -> str:
        return self.backbone

    def named_backbones(self) -> Sequence[NamedBackbone]:
        return [each._replace(frozen=self.trainable == "heads") for each in super().named_backbones()]


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Train on the set's `train` split, score on its held-out split, and calibrate; the scores go into the manifest.

    Of several processes that train together, the first one writes, scores and returns the counts, the others return {}.
    Raises ConfigError if the set has no labels of the task, DataError if the loss becomes non-finite.
    """
    from ingest.dataset import IngestedSet, teacher_space
    from ingest.resized import read_resized
    from pipeline.data.statistics import own_statistics
    from tasks.network import build_network
    from tasks.prediction import network_predictor
    from tasks.teacher import Teacher, TeacherSchedule
    from tasks.training import TrainingPlan, WeightedSum, fitted_space, train_network

    name, teacher = config["name"], Config.model_validate(config["teacher"])
    dataset = IngestedSet(inputs[f"data.{teacher.data}"])
    labelled = training_images(name, teacher.task, dataset)
    space = fitted_space(teacher_space(name, teacher.task, teacher.data, dataset.spaces), labelled, name)
    network = build_network(teacher, {name: space}, config["seed"], own_statistics(labelled))
    if teacher.trainable == "heads":
        network.backbone.freeze()
    images = read_resized(labelled, inputs)
    validated = validation_images(config, dataset) if teacher.validate else {}
    plan = TrainingPlan(f"teacher.{name}", teacher, teacher.augment, config["seed"], out, validated)
    trained = train_network(network, WeightedSum({name: 1.0}), images, plan, inputs.runtime)
    if not ranks.is_first():
        return {}
    network.cpu().save(out)
    found = measure(config, inputs, out, network_predictor(network), teacher.data)
    schedule = TeacherSchedule(teacher.batch, teacher.lr, teacher.optimizer_name())
    measured = found.scores, found.baseline, found.images
    Teacher("supervised", space, teacher.data, schedule, *measured, found.calibration).write(out)
    untrained = network.untrained_parameters()
    return {"images": len(images), "untrained": untrained, **found.counts(), **trained.counts()}


def load(folder: Path) -> Predictor:
    """Load the trained teacher."""
    from tasks.network import Network
    from tasks.prediction import network_predictor

    return network_predictor(Network.load(folder))
