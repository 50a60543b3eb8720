"""transformers teacher: a published model of Hugging Face transformers, with the preprocessing stored beside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from pipeline.errors import install_command
from pipeline.recipe.teacher import TeacherConfig
from pipeline.steps.artifact import Inputs, read_json, write_json

if TYPE_CHECKING:
    from tasks.prediction import Predictor


class Config(TeacherConfig):
    """A model for one task. Needs the extra `transformers`."""

    kind: Literal["transformers"] = "transformers"
    task: Literal["classification", "multilabel", "detection", "segmentation", "depth"]
    weights: str
    """A folder that `save_pretrained` wrote, or `hub:<owner>/<model>` to download from the Hugging Face hub."""
    image_size: int | None = Field(default=None, ge=32)
    """Side of the square that images are resized to, pixels; the model's own if not given."""
    scale: Literal["relative", "metric"] = "relative"
    """Output of a depth model: inverse depth up to scale and shift, or metres."""

    @field_validator("kind")
    @classmethod
    def _check_installed(cls, kind: str) -> str:
        if importlib.util.find_spec(kind) is None:
            raise ValueError(f"the package transformers is not installed: {install_command('transformers')}")
        return kind


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Copy model and weights into the artifact, so that a run never depends on where they came from."""
    from tasks.teacher import Teacher
    from teachers.models.transformers_models import describe, fetch, space_of

    teacher = Config.model_validate(config["teacher"])
    model, processor = fetch(teacher.weights, teacher.task)
    about = describe(model, processor, {**teacher.model_dump(mode="json"), "head": config["name"]})
    space, _ = space_of(about)
    model.save_pretrained(out, max_shard_size="1TB")  # one file
    processor.save_pretrained(out)
    write_json(out / "model.json", about)
    Teacher("transformers", space).write(out)
    return {"classes": len(space.classes)}


def load(folder: Path) -> Predictor:
    """Load the model, with its preprocessing and normalisation except that the input is square."""
    from teachers.models.transformers_models import build_predictor

    return build_predictor(folder, read_json(folder / "model.json"))
