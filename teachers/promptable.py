"""Promptable teacher: a published model, such as SAM, that makes masks of another teacher's boxes, without training."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.errors import error_context
from pipeline.recipe.teacher import TeacherConfig
from pipeline.recipe.weight_names import HUB
from pipeline.steps.artifact import LOG, MANIFEST, Inputs, read_json, write_json
from tasks.teacher import FILE, Teacher
from teachers._held_out import measure_published
from teachers._hugging_face import NEEDS_TRANSFORMERS

if TYPE_CHECKING:
    from tasks.prediction import Predictor

PROMPTER = "prompter"
"""Folder of the artifact with the files of the teacher whose boxes are the prompts."""


class Config(TeacherConfig):
    """A model for promptable segmentation, and the teacher that prompts it. Needs the extra `transformers`."""

    readout = "vector"
    kind: Annotated[Literal["promptable"], NEEDS_TRANSFORMERS] = "promptable"
    task: Literal["masks"] = "masks"
    boxes: str
    """The teacher whose boxes are the prompts, by its name under `teachers`: of any kind, for detection or masks. Each
    box becomes a mask of its class and with its score."""
    weights: str
    """A folder that `save_pretrained` wrote, or `hub:<owner>/<model>` to download from the Hugging Face hub: SAM or
    SAM 2."""
    threshold: float = Field(default=0.05, ge=0, le=1)
    """Least score of a box that becomes a mask, before any calibration: each costs a pass of the model's decoder."""
    max_boxes: int = Field(default=100, ge=1)
    """Boxes of an image that become masks, at most: those of the largest scores."""

    @property
    def prompted_by(self) -> str:
        return self.boxes

    def check(self) -> None:
        """Raise ConfigError or DataError if a folder has no whole model that takes boxes.

        What is on the hub is checked once it is there.
        """
        from teachers.models.promptable_models import fetch

        if not self.weights.startswith(HUB):
            fetch(self.weights)


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Copy model and weights into the artifact, and the teacher whose boxes are its prompts."""
    from teachers.models.promptable_models import describe, fetch

    teacher = Config.model_validate(config["teacher"])
    prompter = inputs[f"teacher.{teacher.boxes}"]
    space = dataclasses.replace(Teacher.load(prompter).space, task=teacher.task)
    with error_context(f"teachers.{config['name']}"):
        model, processor = fetch(teacher.weights)
        settings = teacher.model_dump(mode="json", include={"weights", "task", "threshold", "max_boxes"})
        about = describe(processor, {**settings, "head": config["name"], "classes": list(space.classes)})
    prompter.load_all(lambda folder: _copy_files(folder, out / PROMPTER))
    model.save_pretrained(out, max_shard_size="1TB")  # one file
    write_json(out / "model.json", about)
    found = measure_published(config, inputs, out, load)
    found.published_teacher("promptable", space).write(out)
    return {"classes": len(space.classes), **found.published_counts()}


def _copy_files(artifact: Path, to: Path) -> None:
    shutil.copytree(artifact, to, ignore=shutil.ignore_patterns(LOG, MANIFEST))


def load(folder: Path) -> Predictor:
    """Load the model with the teacher that prompts it."""
    from teachers.models.promptable_models import build_predictor

    prompter = Teacher.from_json(read_json(folder / PROMPTER / FILE)).open_model(folder / PROMPTER)
    prompter_id = read_json(folder / PROMPTER / "model.json")
    return build_predictor(folder, read_json(folder / "model.json"), prompter, prompter_id)
