"""Backbone teacher: the features of a published backbone, as DINOv2's or SigLIP's, to be learned by the student.

Its labels are the principal components of its vectors, or of the cells of its maps, fitted to the images of a set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import ConfigError, error_context
from pipeline.models.weights import expand_home
from pipeline.recipe.stage import PUBLISHED
from pipeline.recipe.teacher import TeacherConfig
from pipeline.recipe.weight_names import HUB, PACKAGE, is_path
from pipeline.steps.artifact import Inputs
from pipeline.stores.labels import LabelSpace
from teachers._applicability import DOMAIN, sample_vectors
from teachers._held_out import measure_published
from teachers._hugging_face import check_installed

if TYPE_CHECKING:
    from pipeline.models.readout import ReadoutBackbone
    from tasks.prediction import Predictor

FEATURES, FEATURE_MAPS = "features", "feature_maps"
TASKS = {"backbone": FEATURES, "backbone_maps": FEATURE_MAPS}
"""The task by what `model.json` calls the format of the model."""
MAX_IMAGES = {FEATURES: 10_000, FEATURE_MAPS: 2_000}
"""Images that the components are fitted to, drawn at random from more. Of a map several cells are drawn."""
MAP_COMPONENTS = 64
"""Components of maps that are kept if nothing is said."""
MIN_IMAGES = 10
"""A set with no more images than this tells nothing of variances."""


class Config(TeacherConfig):
    """A published backbone, and images of the kind that the student is to know."""

    readout = "maps"
    kind: Literal["backbone"] = "backbone"
    task: Literal["features", "feature_maps"] = "features"
    """What is learned of it: its vector of an image, or its map."""
    model: str | None = None
    """Its name in timm; null for a backbone of Hugging Face transformers, whose weights tell what it is. Needs the
    extra `transformers` then."""
    weights: str
    """Of timm a file, `package:<module>/<file>`, or `timm` to download what timm publishes. Of transformers a folder
    that `save_pretrained` wrote, or `hub:<owner>/<model>` to download from the Hugging Face hub: DINOv2, DINOv3,
    SigLIP, CLIP, ViT, ConvNeXt, or the like."""
    domain: str
    """The set, labelled or not, that the principal components are fitted to, and that tells the applicability of its
    labels: of the pool's kind."""
    components: int | None = Field(default=None, ge=1)
    """Principal components that are kept. Of vectors they take 2 bytes an image each; null for all, and the set has to
    have more images. Of maps they take a byte or less in each cell; null for 64."""
    image_size: int | None = Field(default=None, ge=32)
    """Side of the square that images are stretched to, pixels; the model's own if not given."""

    @model_validator(mode="after")
    def _of_one_library(self) -> Config:
        if self.model is None and (self.weights == PUBLISHED or self.weights.startswith(PACKAGE)):
            raise ValueError(
                f"weights {self.weights!r} are of a timm model, and none is named: add model, as in "
                f"{{model: vit_small_patch14_dinov2, weights: {self.weights}}}"
            )
        if self.model is not None and self.weights.startswith(HUB):
            raise ValueError(_two_libraries(self.model, self.weights))
        if self.model is None:
            try:
                check_installed()
            except ValueError as error:
                raise ValueError(f"no timm model is named, and for one of Hugging Face transformers {error}") from error
        return self

    def model_names(self) -> Sequence[str]:
        return [self.model] if self.model else []

    def check(self) -> None:
        """Raise ConfigError if timm does not know the model, it has no readout, or the weights are not its own.

        What is on the hub is checked once it is there.
        """
        from pipeline.models.weight_loading import check_backbone

        is_folder = is_path(self.weights) and os.path.isdir(expand_home(self.weights))
        if self.model is not None and is_folder:
            raise ConfigError(_two_libraries(self.model, self.weights))
        if self.model is not None:
            check_backbone(self.model, self.image_size or _published(self.model)["input_size"][-1], self.weights)
        elif is_folder:
            _fetch(self)
        elif not self.weights.startswith(HUB):
            raise ConfigError(
                f"weights {self.weights!r} are no folder that save_pretrained wrote, and no timm model is named that "
                "they could be of: add model, or give a folder or hub:<owner>/<model>."
            )


def _two_libraries(model: str, weights: str) -> str:
    return (
        f"weights {weights!r} are of Hugging Face transformers, and model {model!r} is one of timm: leave out model, "
        "or give a file of this model's weights."
    )


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Copy the weights into the artifact, and fit the components.

    Raises ConfigError if the set has too few images, or the features of all are the same.
    """
    import torch

    from pipeline.models.checkpoint import save_model
    from tasks.components import FittedVectors, PrincipalComponents
    from tasks.prediction import Predictor

    name, data = config["name"], config[DOMAIN]
    teacher = Config.model_validate({**config["teacher"], DOMAIN: data})
    with error_context(f"teachers.{name}"):
        backbone, built = _fetch(teacher)
    about = {"format": next(key for key, task in TASKS.items() if task == teacher.task), "head": name, **built}
    predictor = _predictor(backbone, {**about, "components": 1})
    network: Any = predictor.network
    predictor.setup(inputs.runtime, about)
    fitting = Predictor(FittedVectors(network), {}, predictor.preprocessing)
    fitting.compute = predictor.compute
    vectors = torch.from_numpy(sample_vectors(data, inputs, fitting, MAX_IMAGES[teacher.task]))
    with error_context(f"teachers.{name}"):
        about["components"] = _count_components(teacher, *vectors.shape)
        try:
            network.components = PrincipalComponents.fit(vectors.flatten(0, 1), about["components"])
        except ValueError as error:
            raise ConfigError(f"domain: of the set {data!r} {error}: name another set.") from error
    save_model(out, network.state_dict(), about)
    found = measure_published(config, inputs, out, load)
    found.published_teacher("backbone", _space(about)).write(out)
    fitted = {"images": len(vectors), "variance": round(float(network.components.share), 4)}
    return {"components": about["components"], **fitted, **found.published_counts()}


def _count_components(teacher: Config, images: int, each: int, width: int) -> int:
    """Return how many components there are, of `each` vectors (or cells) of an image.

    Raises ConfigError if there are more than vectors have numbers, or images show.
    """
    is_map = teacher.task == FEATURE_MAPS
    if teacher.components and teacher.components > width:
        of = "cells" if is_map else "vectors"
        raise ConfigError(f"components: {teacher.components} is more than the {width} numbers of the model's {of}.")
    needed = max((teacher.components or 0) // each, MIN_IMAGES)
    if images <= needed:
        asked = teacher.components or "principal"
        raise ConfigError(
            f"domain: the set {teacher.domain!r} has {images} images to train on, and {asked} components take more "
            f"than {needed}: name a larger set, or fewer components."
        )
    return teacher.components or min(MAP_COMPONENTS if is_map else width, width, images * each - 1)


def _fetch(teacher: Config) -> tuple[ReadoutBackbone, dict[str, Any]]:
    """Return the backbone with its published weights, and what `model.json` says of it: enough for `_build`."""
    from pipeline.models.timm_models import statistics
    from pipeline.models.weight_loading import load_weights

    if teacher.model is None:
        from teachers.models import transformers_backbones

        return transformers_backbones.fetch(teacher.weights, teacher.task, teacher.image_size)
    published, (mean, std) = _published(teacher.model), statistics(teacher.model)
    about = {
        "model": teacher.model,
        "size": teacher.image_size or published["input_size"][-1],
        "bicubic": published["interpolation"] == "bicubic",
        "mean": list(mean),
        "std": list(std),
    }
    backbone: Any = _build(about)
    load_weights(backbone.model, teacher.model, teacher.weights)
    return backbone, about


def _published(model: str) -> dict[str, Any]:
    """Return how timm prepares images for the model."""
    import timm
    import torch

    from pipeline.models.timm_models import check_model_name

    check_model_name(model)
    with torch.device("meta"):
        config: dict[str, Any] = timm.data.resolve_data_config({}, model=timm.create_model(model, num_classes=0))
    return config


def _space(about: Mapping[str, Any]) -> LabelSpace:
    return LabelSpace(TASKS[about["format"]], tuple(str(number + 1) for number in range(about["components"])))


def _build(about: Mapping[str, Any]) -> ReadoutBackbone:
    """Build the backbone of a `model.json` with random weights."""
    if "config" in about:
        from teachers.models import transformers_backbones

        return transformers_backbones.build(about)
    from pipeline.models.backbone import Backbone

    return Backbone(about["model"], about["size"], (about["mean"], about["std"]))


def _predictor(backbone: ReadoutBackbone, about: Mapping[str, Any]) -> Predictor:
    """Return the teacher of a backbone, with components of zeros."""
    import tasks
    from tasks.feature_maps.model import BackboneMaps, FeatureMapNetwork
    from tasks.features.model import FeatureNetwork
    from tasks.prediction import Predictor, Preprocessing

    space, built = _space(about), (backbone, about["head"], about["components"])
    preprocessing = Preprocessing(about["size"], bicubic=about["bicubic"])
    if space.task == FEATURE_MAPS:
        return Predictor(FeatureMapNetwork(*built), {about["head"]: BackboneMaps(space)}, preprocessing)
    return Predictor(FeatureNetwork(*built), {about["head"]: tasks.model(space)}, preprocessing)


def load(folder: Path) -> Predictor:
    """Load the backbone with its components."""
    from pipeline.models.checkpoint import load_model

    about, weights = load_model(folder)
    predictor = _predictor(_build(about), about)
    predictor.network.load_state_dict(weights)
    return predictor
