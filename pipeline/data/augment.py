"""Augmentation: random parameters, drawn once per image and applied alike to the image and, by each task's rules, to
its labels.

Geometry is a box in relative coordinates, a mirroring and a square output: images of any shape are resized to the
network's square input, whole for prediction, by a random crop for training.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.recipe.augment import AugmentConfig
from pipeline.stores.labels import FULL_IMAGE, Box, Label, Value

_LUMA = np.array([0.299, 0.587, 0.114])


class AugmentParams(NamedTuple):
    """Parameters of one augmentation; by default the whole image as it is."""

    box: Box = FULL_IMAGE
    """The crop (x0, y0, x1, y1), the image being (0, 0, 1, 1)."""
    flip: bool = False
    """Mirrored left to right."""
    color: tuple[float, ...] | None = None
    """A 3 x 4 matrix on RGB values in 0 to 255, by rows."""


def seeded_generator(*numbers: int) -> np.random.Generator:
    """Return a random generator that depends on these numbers alone, so that any process draws the same."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(numbers)))


def sample_params(config: AugmentConfig, rng: np.random.Generator) -> AugmentParams:
    """Draw the parameters of an augmentation. Always consumes the same amount of randomness."""
    area, aspect, x, y, flip, *color = rng.random(8)
    share = config.area + (1 - config.area) * area
    ratio = math.exp((2 * aspect - 1) * math.log(config.aspect))
    ratio = min(max(ratio, share), 1 / share)  # or a side would reach beyond the image, and cutting it lose area
    width, height = min(math.sqrt(share * ratio), 1.0), min(math.sqrt(share / ratio), 1.0)
    left, top = x * (1 - width), y * (1 - height)
    box = (left, top, left + width, top + height)
    return AugmentParams(box, bool(flip < config.flip), _color_matrix(config, np.array(color)))


def _color_matrix(config: AugmentConfig, draws: NDArray[np.float64]) -> tuple[float, ...] | None:
    strengths = np.array([config.brightness, config.contrast, config.saturation])
    if not strengths.any():
        return None
    brightness, contrast, saturation = 1 + strengths * (2 * draws - 1)
    gray = np.tile(_LUMA, (3, 1))
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * gray)
    shift = brightness * (1 - contrast) * 127.5  # contrast turns about mid-gray
    return tuple(np.hstack([matrix, np.full((3, 1), shift)]).ravel().tolist())


def transform_image(image: Image.Image, params: AugmentParams, size: int) -> NDArray[np.uint8]:
    """Return the augmented RGB image as (size, size, 3) uint8, resized bilinearly with anti-aliasing."""
    x0, y0, x1, y1 = params.box
    box = (x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height)
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if params.flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if params.color is not None:
        resized = resized.convert("RGB", params.color)
    return np.asarray(resized)


def transform_label(label: Label, value: Value, params: AugmentParams, size: int) -> Value:
    """Return the label of the augmented image, its raster or its pixels being `size` x `size`."""
    value = label.crop(value, params.box, (size, size))
    return label.flip(value) if params.flip else value
