"""torchvision teacher: a detector or segmenter of torchvision with published weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.recipe.augment import Resize
from pipeline.recipe.teacher import TeacherConfig
from pipeline.steps.artifact import Inputs
from pipeline.stores.labels import LabelSpace
from teachers._held_out import measure_published

if TYPE_CHECKING:
    from tasks.prediction import Predictor


class Config(TeacherConfig):
    """A model of `torchvision.models.detection` or `.segmentation`, and its weights."""

    kind: Literal["torchvision"] = "torchvision"
    task: Literal["detection", "segmentation"]
    model: str
    """Its name in torchvision, for example fasterrcnn_resnet50_fpn or deeplabv3_resnet50."""
    weights: str
    """A file, `package:<module>/<file>`, or `torchvision` to download what torchvision publishes."""
    classes: tuple[str, ...] = ()
    """Class names of its outputs, in order, with the background; those of the published weights if not given."""
    image_size: int = Field(default=512, multiple_of=32, ge=64)
    """Side of the square that images are resized to, pixels."""
    resize: Resize = "stretch"
    """How images become square: `stretch` them to fill it, or `pad` them, which keeps their aspect ratio."""

    def label_space(self) -> LabelSpace:
        from teachers.models.torchvision_models import output_names, space_of

        return space_of(self.task, output_names(self.model_dump(mode="json")))[0]

    def check(self) -> None:
        """Raise ConfigError if torchvision does not know the model, or if the weights are not its own."""
        from teachers.models.torchvision_models import check_model

        check_model(self.model_dump(mode="json"))


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Copy the weights into the artifact, so that a run never depends on where they came from."""
    from pipeline.models.checkpoint import save_model
    from teachers.models.torchvision_models import build, fetch_weights, space_of

    teacher = Config.model_validate(config["teacher"])
    about = {**teacher.model_dump(mode="json"), "head": config["name"], "format": "torchvision"}
    model, outputs = build(about)
    model.load_state_dict(fetch_weights(model, teacher.model, teacher.weights))
    space, _ = space_of(teacher.task, outputs)
    save_model(out, model.state_dict(), {**about, "classes": outputs})
    found = measure_published(config, inputs, out, load)
    found.published_teacher("torchvision", space).write(out)
    return {"classes": len(space.classes), **found.published_counts()}


def load(folder: Path) -> Predictor:
    """Load the model, with torchvision's preprocessing except that the input is square."""
    from pipeline.models.checkpoint import load_model
    from teachers.models.torchvision_models import build_predictor

    return build_predictor(*load_model(folder))
