"""Analytic teacher: a fixed function of the image, which needs neither labels nor training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.recipe.teacher import TeacherConfig
from pipeline.steps.artifact import Inputs, read_json, write_json
from pipeline.stores.labels import LabelSpace
from tasks.teacher import Teacher
from tasks.texture.functions import Function, response_names

if TYPE_CHECKING:
    from tasks.prediction import Predictor


MIN_WAVELENGTH = 2.0
"""Pixels: the finest wave that pixels show, whose odd filter is 0."""
RADIUS = 1.4
"""Of a filter, in wavelengths: the image is mirrored so far beyond its border, less than its side."""


class Config(TeacherConfig):
    """A function of the image: a bank of Gabor filters (Albuquerque et al., arXiv 2003.13525), texture and direction at
    several scales; histograms of oriented gradients; edges at three scales; or shares of eleven colors."""

    readout = "nothing"
    kind: Literal["analytic"] = "analytic"
    task: Literal["texture"] = "texture"
    function: Function = "gabor"
    """The function of the image."""
    wavelengths: list[float] = Field(default=[4.0, 8.0], min_length=1)
    """Wavelengths of `gabor` in pixels of the resized image: above 2, and 1.4 of them at most `image_size` - 1."""
    orientations: int = Field(default=4, ge=2, le=36)
    """Number of directions of `gabor` and `hog`, evenly spread over 180 degrees."""
    image_size: int = Field(default=128, multiple_of=32, ge=32)
    """Side of the square that images are resized to, pixels."""

    def label_space(self) -> LabelSpace:
        return LabelSpace("texture", tuple(filter_names(self)))

    @model_validator(mode="after")
    def _keys_are_of_the_function(self) -> Config:
        for key, functions in (("wavelengths", ("gabor",)), ("orientations", ("gabor", "hog"))):
            value = getattr(self, key)
            if self.function not in functions and value != type(self).model_fields[key].default:
                raise ValueError(f"{key} is {value}: that is a key of {' and '.join(functions)}; leave it out")
        return self

    @model_validator(mode="after")
    def _wavelengths_fit(self) -> Config:
        most = self.image_size - 1
        for wavelength in self.wavelengths:
            if not (wavelength > MIN_WAVELENGTH and RADIUS * wavelength <= most):
                raise ValueError(
                    f"wavelengths: {wavelength:g} is not above {MIN_WAVELENGTH:g} and up to {int(most / RADIUS)}, "
                    f"as filters on an image_size of {self.image_size} have to be"
                )
        if len(set(filter_names(self))) < len(filter_names(self)):
            raise ValueError(f"wavelengths: {self.wavelengths} names one twice; give each once")
        return self


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write the function's configuration."""
    teacher = Config.model_validate(config["teacher"])
    space = teacher.label_space()
    write_json(out / "model.json", {"format": teacher.function, "head": config["name"], "config": teacher.model_dump()})
    Teacher("analytic", space).write(out)
    return {"filters": len(space.classes)}


def filter_names(teacher: Config) -> list[str]:
    """Return the names of the responses."""
    return response_names(teacher.function, teacher.wavelengths, teacher.orientations)


def load(folder: Path) -> Predictor:
    """Load the filter bank."""
    from tasks.prediction import Predictor, Preprocessing
    from tasks.texture.filter_banks import BankNetwork, build_bank
    from tasks.texture.model import FilterResponses

    about = read_json(folder / "model.json")
    teacher = Config.model_validate(about["config"])
    head = FilterResponses(teacher.label_space())
    bank = build_bank(teacher.function, teacher.wavelengths, teacher.orientations)
    return Predictor(BankNetwork(about["head"], bank), {about["head"]: head}, Preprocessing(teacher.image_size))
