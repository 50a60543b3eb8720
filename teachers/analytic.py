"""A teacher that needs no labels and no training: a function of the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.recipe.teacher import TeacherConfig
from pipeline.steps.artifact import Inputs, read_json, write_json

if TYPE_CHECKING:
    from tasks.prediction import Predictor


class Config(TeacherConfig):
    """A bank of Gabor filters (Albuquerque et al., arXiv 2003.13525): texture and direction at several scales."""

    kind: Literal["analytic"] = "analytic"
    task: Literal["texture"] = "texture"
    function: Literal["gabor"] = "gabor"
    """Which function of the image."""
    wavelengths: list[float] = Field(default=[4.0, 8.0], min_length=1)
    """Pixels of the resized image per period."""
    orientations: int = Field(default=4, ge=2)
    """Directions, evenly spread over half a turn."""
    image_size: int = Field(default=128, multiple_of=32, ge=32)
    """Side of the square that images are resized to, pixels."""


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write down what the function is; there is nothing to learn."""
    from pipeline.stores.labels import LabelSpace
    from tasks.teacher import Teacher

    teacher = Config.model_validate(config["teacher"])
    names = filter_names(teacher)
    write_json(out / "model.json", {"format": "gabor", "head": config["name"], "config": teacher.model_dump()})
    Teacher("analytic", LabelSpace("texture", tuple(names))).write(out)
    return {"filters": len(names)}


def filter_names(teacher: Config) -> list[str]:
    """`<wavelength>@<degrees>` of every filter, wavelengths first."""
    angles = [f"{180 * number / teacher.orientations:g}" for number in range(teacher.orientations)]
    return [f"{wavelength:g}@{angle}" for wavelength in teacher.wavelengths for angle in angles]


def load(folder: Path) -> Predictor:
    """The filter bank as a predictor."""
    from pipeline.stores.labels import LabelSpace
    from tasks.prediction import Predictor, Preprocessing
    from tasks.texture.model import FilterResponses, GaborBank

    about = read_json(folder / "model.json")
    teacher = Config.model_validate(about["config"])
    head = FilterResponses(LabelSpace("texture", tuple(filter_names(teacher))))
    bank = GaborBank(about["head"], teacher.wavelengths, teacher.orientations)
    return Predictor(bank, {about["head"]: head}, Preprocessing(teacher.image_size))
