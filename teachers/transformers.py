"""transformers teacher: a published model of Hugging Face transformers, with the preprocessing stored beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.recipe.augment import Resize
from pipeline.recipe.teacher import TeacherConfig
from pipeline.recipe.weight_names import HUB
from pipeline.steps.artifact import Inputs, read_json, write_json
from pipeline.stores.labels import LabelSpace
from teachers._held_out import measure_published
from teachers._hugging_face import NEEDS_TRANSFORMERS

if TYPE_CHECKING:
    from tasks.prediction import Predictor


class Config(TeacherConfig):
    """A model for one task. Needs the extra `transformers`."""

    readout = "nothing"
    kind: Annotated[Literal["transformers"], NEEDS_TRANSFORMERS] = "transformers"
    task: Literal["classification", "multilabel", "detection", "segmentation", "depth"]
    weights: str
    """A folder that `save_pretrained` wrote, or `hub:<owner>/<model>` to download from the Hugging Face hub."""
    image_size: int | None = Field(default=None, ge=32)
    """Side of the square that images are resized to, pixels; the model's own if not given."""
    resize: Resize = "stretch"
    """How images become square: `stretch` them to fill it, or `pad` them, which keeps their aspect ratio. Classifiers
    whose own preprocessing crops the centre do that instead."""
    scale: Literal["relative", "metric"] = "relative"
    """Output of a depth model: inverse depth up to scale and shift, or metres."""

    def label_space(self) -> LabelSpace | None:
        """Return what the labels of a model in a folder mean; None for one on the hub: a plan does not ask it."""
        from teachers.models.transformers_models import folder_space

        return None if self.weights.startswith(HUB) else folder_space(self.weights, self.task, self.scale)


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Copy model and weights into the artifact, so that a run never depends on where they came from."""
    from teachers.models.transformers_models import describe, fetch, space_of

    teacher = Config.model_validate(config["teacher"])
    model, processor = fetch(teacher.weights, teacher.task)
    about = describe(model, processor, {**teacher.model_dump(mode="json"), "head": config["name"]})
    space, _ = space_of(about)
    model.save_pretrained(out, max_shard_size="1TB")  # one file
    processor.save_pretrained(out)
    write_json(out / "model.json", about)
    found = measure_published(config, inputs, out, load)
    found.published_teacher("transformers", space).write(out)
    return {"classes": len(space.classes), **found.published_counts()}


def load(folder: Path) -> Predictor:
    """Load the model, with its preprocessing and normalisation except that the input is square."""
    from teachers.models.transformers_models import build_predictor

    return build_predictor(folder, read_json(folder / "model.json"))
