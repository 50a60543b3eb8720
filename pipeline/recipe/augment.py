"""The recipe's `augment` section, and the ways in which images are resized to a square. No torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.recipe.base import BaseConfig

Resize = Literal["stretch", "pad"]
"""How an image of another shape becomes square: stretched to fill the square, or shrunk and padded."""


class AugmentConfig(BaseConfig):
    """Random augmentation of training images. Zeros, with `area` and `aspect` 1, leave an image as it is."""

    area: float = Field(default=0.3, gt=0, le=1)
    """Smallest share of the image's area that a crop may have; the largest is 1. Not together with `scale`."""
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    """Large-scale jitter instead of `area`: the smallest and largest factor of the image's size, as [0.1, 2.0]. Below 1
    the image is shrunk and padded, above 1 enlarged and cropped."""
    aspect: float = Field(default=4 / 3, ge=1)
    """Largest factor, either way, between the aspect ratios of crop and image."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of mirroring left to right."""
    brightness: float = Field(default=0.3, ge=0, lt=1)
    """Largest relative change, either way."""
    contrast: float = Field(default=0.3, ge=0, lt=1)
    """Largest relative change, either way."""
    saturation: float = Field(default=0.3, ge=0, lt=1)
    """Largest relative change, either way."""

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.scale is None:
            return self
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: {list(self.scale)} has the larger factor first; give the smaller one first")
        if self.area != type(self).model_fields["area"].default:
            raise ValueError(f"area: {self.area} can't be given with scale: {list(self.scale)}, which replaces it")
        return self
