"""Pretrained teacher: a published timm classifier, with the preprocessing it was trained with.

Images are cropped at their centre, or stretched where timm does that ("squash"); then the model sees all of them.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.recipe.teacher import TeacherConfig
from pipeline.steps.artifact import Inputs
from pipeline.stores.labels import LabelSpace
from teachers._held_out import measure_published

if TYPE_CHECKING:
    from tasks.prediction import Predictor


class Config(TeacherConfig):
    """A timm classifier and its weights."""

    readout = "vector"
    kind: Literal["pretrained"] = "pretrained"
    task: Literal["classification"] = "classification"
    model: str
    """Its name in timm."""
    weights: str
    """A file, `package:<module>/<file>`, or `timm` to download what timm publishes."""
    classes: Literal["imagenet-1k", "imagenet-12k", "imagenet-22k"] | list[str] = "imagenet-1k"
    """Class names of its outputs, in order, or a set whose names timm knows."""
    image_size: int | None = Field(default=None, ge=32)
    """Side of the input in pixels; the model's own if not given."""
    centre: float | None = Field(default=None, gt=0, le=1)
    """Share of the shorter side that the central crop covers; the model's own if not given."""
    mean: list[float] | None = None
    """Per channel, for images in [0, 1]; the model's own if not given."""
    std: list[float] | None = None
    """Per channel, for images in [0, 1]; the model's own if not given."""

    def backbone_name(self) -> str:
        return self.model

    def model_names(self) -> Sequence[str]:
        return [self.model]

    def label_space(self) -> LabelSpace:
        return LabelSpace("classification", tuple(class_names(self)))

    def check(self) -> None:
        """Raise ConfigError if timm does not know the model, the weights are not its own, or the size is none of it."""
        from pipeline.models.weight_loading import check_classifier

        check_classifier(self.model, len(class_names(self)), self.weights, self.image_size)


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Copy the weights into the artifact, so that a run never depends on where they came from."""
    import timm

    from pipeline.models.checkpoint import save_model
    from pipeline.models.timm_models import create_timm_classifier
    from pipeline.models.weight_loading import load_weights

    teacher = Config.model_validate(config["teacher"])
    names = class_names(teacher)
    model = create_timm_classifier(teacher.model, len(names), teacher.image_size)
    load_weights(model, teacher.model, teacher.weights, num_classes=len(names))
    published = timm.data.resolve_data_config({}, model=model)
    about = {
        "format": "timm_classifier",
        "model": teacher.model,
        "head": config["name"],
        "classes": names,
        "size": teacher.image_size or published["input_size"][-1],
        "centre": teacher.centre or (None if published["crop_mode"] == "squash" else published["crop_pct"]),
        "bicubic": published["interpolation"] == "bicubic",
        "mean": list(teacher.mean or published["mean"]),
        "std": list(teacher.std or published["std"]),
    }
    save_model(out, model.state_dict(), about)
    found = measure_published(config, inputs, out, load)
    found.published_teacher("pretrained", LabelSpace("classification", tuple(names))).write(out)
    return {"classes": len(names), **found.published_counts()}


def class_names(teacher: Config) -> list[str]:
    """Return the class names of the model's outputs, in order; a name of several classes goes with WordNet's number."""
    if isinstance(teacher.classes, list):
        return teacher.classes
    from timm.data import ImageNetInfo

    info = ImageNetInfo(teacher.classes)
    names = [info.index_to_description(index) for index in range(info.num_classes())]
    often = {name for name, count in collections.Counter(names).items() if count > 1}
    return [
        f"{name} ({info.index_to_label_name(index)})" if name in often else name for index, name in enumerate(names)
    ]


def load(folder: Path) -> Predictor:
    """Load the classifier, with its preprocessing and normalisation."""
    import tasks
    from pipeline.models.backbone import Classifier
    from pipeline.models.checkpoint import load_model
    from tasks.prediction import Predictor, Preprocessing

    about, weights = load_model(folder)
    statistics = about["mean"], about["std"]
    network = Classifier(about["model"], about["head"], len(about["classes"]), about["size"], statistics)
    network.model.load_state_dict(weights)
    head = tasks.model(LabelSpace("classification", tuple(about["classes"])))
    preprocessing = Preprocessing(about["size"], crop_pct=about["centre"], bicubic=about["bicubic"])
    return Predictor(network, {about["head"]: head}, preprocessing)
