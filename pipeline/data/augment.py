"""Augmentation: random parameters, drawn once per image and applied alike to the image and, by each task's rules, to
its labels.

Geometry is a mirroring, a box in relative coordinates and a square output: images of any shape become the network's
square input, whole for prediction, by a random crop for training. A box that reaches beyond the image's right or bottom
edge pads: the image then covers a valid region at the top left, and labels are unknown outside of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.bands import Bands, Pixels, resize_bands
from pipeline.recipe.augment import AugmentConfig, Resize
from pipeline.stores.labels import Label, Value
from pipeline.stores.rasters import DENSE_STRIDE, FULL_IMAGE, Box

_LUMA = np.array([0.299, 0.587, 0.114])
PAD_COLOR = (124, 116, 104)
"""ImageNet's mean color, which networks see as nearly 0."""
ValidSizes = Sequence[tuple[int, int]] | None
"""(width, height) of the valid region of each image of a batch, in pixels of the input; None if nothing is padded."""


class Placement(NamedTuple):
    """An image in a square input."""

    size: tuple[int, int]
    """(width, height) of the image, pixels."""
    valid: tuple[int, int]
    """(width, height) of the valid region, which it covers from the top left, in pixels of the input."""


class AugmentParams(NamedTuple):
    """Parameters of one augmentation; by default the whole image as it is."""

    box: Box = FULL_IMAGE
    """The crop (x0, y0, x1, y1) of the image, which is (0, 0, 1, 1), after mirroring; x1 and y1 may be beyond 1."""
    flip: bool = False
    """Mirrored left to right."""
    color: tuple[float, ...] | None = None
    """A 3 x 4 matrix on RGB values in 0 to 255, by rows."""
    tone: tuple[float, float] | None = None
    """Brightness and contrast of images of other channels than RGB, 1 for as it is."""


def seeded_generator(*numbers: int) -> np.random.Generator:
    """Return a random generator that depends on these numbers alone, so that any process draws the same."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(numbers)))


def sample_params(
    config: AugmentConfig, rng: np.random.Generator, square: tuple[float, float], side: int
) -> AugmentParams:
    """Draw the parameters of an augmentation. Always consumes the same amount of randomness.

    Args:
        square: (width, height), relative to the image, of the square that holds it: see `relative_square`.
        side: of the output, pixels.
    """
    area, aspect, x, y, flip, *color = rng.random(8)
    share = config.area + (1 - config.area) * area
    if config.scale is not None:  # of large-scale jitter, Ghiasi et al., CVPR 2021, section 3
        share = (config.scale[0] + (config.scale[1] - config.scale[0]) * area) ** -2
    ratio = math.exp((2 * aspect - 1) * math.log(config.aspect))
    low, high = sorted((share, 1 / share))  # beyond these one side would be longer than the square, the other shorter
    ratio = min(max(ratio, low), high)
    width = round_to_cells(square[0] * math.sqrt(share * ratio), side)
    height = round_to_cells(square[1] * math.sqrt(share / ratio), side)
    mirrored = bool(flip < config.flip)
    left, top = (1 - x if mirrored else x) * max(1 - width, 0.0), y * max(1 - height, 0.0)
    box, draws = (left, top, left + width, top + height), np.array(color)
    return AugmentParams(box, mirrored, _color_matrix(config, draws), _tone(config, draws))


def relative_square(resize: Resize, size: tuple[int, int]) -> tuple[float, float]:
    """Return (width, height), relative to an image of `size`, of the square that it is resized in, each 1 or more."""
    longer = max(size)
    return (1.0, 1.0) if resize == "stretch" else (longer / size[0], longer / size[1])


def round_to_cells(length: float, side: int) -> float:
    """Return a crop's relative length such that an image that is shorter covers a multiple of DENSE_STRIDE pixels."""
    if length <= 1:
        return length
    covered = max(round(side / length / DENSE_STRIDE), 1) * DENSE_STRIDE
    return max(side / covered, 1.0)


def full_image_box(resize: Resize, size: tuple[int, int], side: int) -> Box:
    """Return the box of the whole image, of `size` (width, height), in a square output of `side` pixels."""
    width, height = (round_to_cells(length, side) for length in relative_square(resize, size))
    return (0.0, 0.0, width, height)


def valid_size(box: Box, side: int) -> tuple[int, int]:
    """Return (width, height) of the valid region that a crop leaves of an output of `side` pixels."""
    x0, y0, x1, y1 = box
    width, height = (1 - x0) / (x1 - x0), (1 - y0) / (y1 - y0)
    return min(side, round(side * width)), min(side, round(side * height))


def _color_matrix(config: AugmentConfig, draws: NDArray[np.float64]) -> tuple[float, ...] | None:
    strengths = np.array([config.brightness, config.contrast, config.saturation])
    if not strengths.any():
        return None
    brightness, contrast, saturation = 1 + strengths * (2 * draws - 1)
    gray = np.tile(_LUMA, (3, 1))
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * gray)
    shift = brightness * (1 - contrast) * 127.5  # contrast turns about mid-gray
    return tuple(np.hstack([matrix, np.full((3, 1), shift)]).ravel().tolist())


def _tone(config: AugmentConfig, draws: NDArray[np.float64]) -> tuple[float, float] | None:
    strengths = np.array([config.brightness, config.contrast])
    brightness, contrast = (1 + strengths * (2 * draws[:2] - 1)).tolist()
    return (brightness, contrast) if strengths.any() else None


def transform_image(image: Pixels, params: AugmentParams, size: int) -> NDArray[Any]:
    """Return the augmented image, resized bilinearly with anti-aliasing: (size, size, 3) uint8 of a picture in RGB,
    (size, size, C) float32 of bands (H, W, C).
    """
    return (
        _transform_bands(image, params, size) if isinstance(image, np.ndarray) else _transform_rgb(image, params, size)
    )


def _source_box(params: AugmentParams, size: tuple[int, int]) -> Box:
    """Return the region, in pixels, of an image of `size` = (width, height) that is to be seen."""
    x0, y0, x1, y1 = params.box
    x1, y1 = min(x1, 1.0), min(y1, 1.0)
    if params.flip:
        x0, x1 = max(1 - x1, 0.0), 1 - x0
    return (x0 * size[0], y0 * size[1], x1 * size[0], y1 * size[1])


def _transform_bands(bands: Bands, params: AugmentParams, size: int) -> Bands:
    """Transform each channel alone: contrast is about its mean, which padding has, and brightness shifts by a share of
    its deviation. So an offset in the numbers, as of degrees in kelvins, changes nothing.
    """
    box, valid = _source_box(params, (bands.shape[1], bands.shape[0])), valid_size(params.box, size)
    resized = resize_bands(bands, box, valid)
    if params.tone is not None:
        brightness, contrast = params.tone
        mean, std = resized.mean((0, 1), np.float64), resized.std((0, 1), np.float64)
        resized = (contrast * (resized - mean) + mean + (brightness - 1) * std).astype(np.float32)
    made = np.empty((size, size, bands.shape[2]), np.float32)
    made[:] = resized.mean((0, 1), np.float64)
    made[: valid[1], : valid[0]] = resized[:, ::-1] if params.flip else resized
    return made


def _transform_rgb(image: Image.Image, params: AugmentParams, size: int) -> NDArray[np.uint8]:
    box, valid = _source_box(params, image.size), valid_size(params.box, size)
    resized = image.resize(valid, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if params.flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if params.color is not None:
        resized = resized.convert("RGB", params.color)
    if valid == (size, size):
        return np.asarray(resized)
    padded = np.full((size, size, 3), PAD_COLOR, np.uint8)
    padded[: valid[1], : valid[0]] = np.asarray(resized)
    return padded


def transform_label(label: Label, value: Value, params: AugmentParams, size: int) -> Value:
    """Return the label of the augmented image, its raster or its pixels being `size` x `size`."""
    return label.crop(label.flip(value) if params.flip else value, params.box, (size, size))
