"""The recipe's `augment` section. No torch."""

from __future__ import annotations

from pydantic import Field

from pipeline.recipe.base import BaseConfig


class AugmentConfig(BaseConfig):
    """Random augmentation of training images. Zeros, with `area` and `aspect` 1, leave an image as it is."""

    area: float = Field(default=0.3, gt=0, le=1)
    """Smallest share of the image's area that a crop may have; the largest is 1."""
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
