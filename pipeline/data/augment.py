"""One geometric and photometric draw per image, applied to the image and, by each task's own rules, to its labels.

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
from pipeline.stores.labels import Box, Label, Value

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_LUMA = np.array([0.299, 0.587, 0.114])


class View(NamedTuple):
    """One draw: the crop's box, mirrored or not, and a colour matrix (12 numbers, rows of 3x4) or None."""

    box: Box = WHOLE
    flip: bool = False
    colour: tuple[float, ...] | None = None


def generator(*numbers: int) -> np.random.Generator:
    """A random generator that depends on these numbers alone: the same draw whoever makes it, and when."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(numbers)))


def draw(config: AugmentConfig, rng: np.random.Generator) -> View:
    """A random view. Always consumes the same amount of randomness."""
    area, aspect, x, y, flip, *colour = rng.random(8)
    share = config.area + (1 - config.area) * area
    ratio = math.exp((2 * aspect - 1) * math.log(config.aspect))
    ratio = min(max(ratio, share), 1 / share)  # or a side would reach beyond the image, and cutting it lose area
    width, height = min(math.sqrt(share * ratio), 1.0), min(math.sqrt(share / ratio), 1.0)
    left, top = x * (1 - width), y * (1 - height)
    box = (left, top, left + width, top + height)
    return View(box, bool(flip < config.flip), _colour_matrix(config, np.array(colour)))


def _colour_matrix(config: AugmentConfig, draws: NDArray[np.float64]) -> tuple[float, ...] | None:
    strengths = np.array([config.brightness, config.contrast, config.saturation])
    if not strengths.any():
        return None
    brightness, contrast, saturation = 1 + strengths * (2 * draws - 1)
    grey = np.tile(_LUMA, (3, 1))
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    shift = brightness * (1 - contrast) * 127.5  # contrast turns about mid-grey
    return tuple(np.hstack([matrix, np.full((3, 1), shift)]).ravel().tolist())


def view_image(image: Image.Image, view: View, size: int) -> NDArray[np.uint8]:
    """The view of an RGB image as (size, size, 3) uint8, bilinear with anti-aliasing."""
    x0, y0, x1, y1 = view.box
    box = (x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height)
    seen = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if view.flip:
        seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.colour is not None:
        seen = seen.convert("RGB", view.colour)
    return np.asarray(seen)


def view_label(label: Label, value: Value, view: View, size: int) -> Value:
    """The label of the view, dense maps and boxes measured on `size` x `size`."""
    value = label.crop(value, view.box, (size, size))
    return label.flip(value) if view.flip else value
