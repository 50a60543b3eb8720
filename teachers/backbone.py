"""Backbone teacher: the features of a published backbone, as DINOv2's or SigLIP's, to be learned by the student.

Its labels are the principal components of its vectors, or of the cells of its maps, fitted to the images of a set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.errors import ConfigError, error_context
from pipeline.recipe.teacher import TeacherConfig
from pipeline.steps.artifact import Inputs
from pipeline.stores.labels import LabelSpace
from teachers._applicability import DOMAIN, sample_vectors
from teachers._held_out import measure_published

if TYPE_CHECKING:
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
    """A timm backbone, its weights, and images of the kind that the student is to know."""

    readout = "maps"
    kind: Literal["backbone"] = "backbone"
    task: Literal["features", "feature_maps"] = "features"
    """What is learned of it: its vector of an image, or its map."""
    model: str
    """Its name in timm."""
    weights: str
    """A file, `package:<module>/<file>`, or `timm` to download what timm publishes."""
    domain: str
    """The set, labelled or not, that the principal components are fitted to, and that tells the applicability of its
    labels: of the pool's kind."""
    components: int | None = Field(default=None, ge=1)
    """Principal components that are kept. Of vectors they take 2 bytes an image each; null for all, and the set has to
    have more images. Of maps they take a byte or less in each cell; null for 64."""
    image_size: int | None = Field(default=None, ge=32)
    """Side of the square that images are stretched to, pixels; the model's own if not given."""

    def model_names(self) -> Sequence[str]:
        return [self.model]

    def check(self) -> None:
        """Raise ConfigError if timm does not know the model, it has no readout, or the weights are not its own."""
        from pipeline.models.weight_loading import check_backbone

        check_backbone(self.model, self.image_size or _published(self.model)["input_size"][-1], self.weights)


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Copy the weights into the artifact, and fit the components.

    Raises ConfigError if the set has too few images, or the features of all are the same.
    """
    import torch

    from pipeline.models.checkpoint import save_model
    from pipeline.models.weight_loading import load_weights
    from tasks.components import FittedVectors, PrincipalComponents
    from tasks.prediction import Predictor

    name, data = config["name"], config[DOMAIN]
    teacher = Config.model_validate({**config["teacher"], DOMAIN: data})
    about = _describe(name, teacher)
    predictor = _build({**about, "components": 1})
    network: Any = predictor.network
    load_weights(network.backbone.model, teacher.model, teacher.weights)
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


def _describe(name: str, teacher: Config) -> dict[str, Any]:
    """Return the teacher's `model.json`, but for the number of its components."""
    from pipeline.models.timm_models import statistics

    published, (mean, std) = _published(teacher.model), statistics(teacher.model)
    return {
        "format": next(name for name, task in TASKS.items() if task == teacher.task),
        "model": teacher.model,
        "head": name,
        "size": teacher.image_size or published["input_size"][-1],
        "bicubic": published["interpolation"] == "bicubic",
        "mean": list(mean),
        "std": list(std),
    }


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


def _build(about: Mapping[str, Any]) -> Predictor:
    """Build the teacher with random weights."""
    import tasks
    from tasks.feature_maps.model import BackboneMaps, FeatureMapNetwork
    from tasks.features.model import FeatureNetwork
    from tasks.prediction import Predictor, Preprocessing

    space, statistics = _space(about), (about["mean"], about["std"])
    built = about["model"], about["head"], about["size"], statistics, about["components"]
    preprocessing = Preprocessing(about["size"], bicubic=about["bicubic"])
    if space.task == FEATURE_MAPS:
        return Predictor(FeatureMapNetwork(*built), {about["head"]: BackboneMaps(space)}, preprocessing)
    return Predictor(FeatureNetwork(*built), {about["head"]: tasks.model(space)}, preprocessing)


def load(folder: Path) -> Predictor:
    """Load the backbone with its components."""
    from pipeline.models.checkpoint import load_model

    about, weights = load_model(folder)
    predictor = _build(about)
    predictor.network.load_state_dict(weights)
    return predictor
