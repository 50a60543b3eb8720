"""Random resized crops of decoded images, drawn as torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` do.

Colors are augmented later, in batches on the device: `selfsup.stages.color_jitter`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.bands import RGB, Pixels, decode_pixels, resize_bands
from selfsup.components.method import Policy, ViewKind

ASPECT = (3 / 4, 4 / 3)
WHOLE = (1.0, 1.0)
ATTEMPTS = 10


class Crop(NamedTuple):
    """A part of an image, in its pixels, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


def draw_crop(policy: Policy, size: tuple[int, int], rng: np.random.Generator) -> Crop:
    """Draw a crop of an image of `size` = (width, height) pixels.

    Its share of the area is uniform, its aspect ratio uniform in the logarithm. If none of ten draws fits into the
    image, it is the largest central crop with an allowed aspect ratio. A policy of all the area takes the whole image.
    """
    width, height = size
    draws = rng.random((ATTEMPTS, 4))
    flip = bool(rng.random() < policy.flip)
    if policy.area == WHOLE:
        return Crop(0, 0, width, height, flip)
    low, high = (math.log(ratio) for ratio in ASPECT)
    for area, ratio, x, y in draws:
        pixels = width * height * (policy.area[0] + (policy.area[1] - policy.area[0]) * area)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(x * (width - w + 1)), int(y * (height - h + 1)), w, h, flip)
    w, h = width, height
    if width / height < ASPECT[0]:
        h = round(w / ASPECT[0])
    elif width / height > ASPECT[1]:
        w = round(h * ASPECT[1])
    return Crop((width - w) // 2, (height - h) // 2, w, h, flip)


def resized_crop(image: Pixels, crop: Crop, size: int) -> NDArray[Any]:
    """Crop an image and resize it, bilinear with anti-aliasing: a picture to (size, size, 3) uint8, bands (H, W, C) to
    (size, size, C) float32.
    """
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    if isinstance(image, np.ndarray):
        bands = resize_bands(image, box, (size, size))
        return bands[:, ::-1] if crop.flip else bands
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else view)


def draw_views(
    data: bytes, kinds: Sequence[ViewKind], rng: np.random.Generator, channels: int = RGB
) -> list[NDArray[Any]]:
    """Decode an image of so many channels once and draw a view of each kind, as `resized_crop` makes it.

    Raises DataError if it can't be decoded.
    """
    # of a smaller image, the smallest and narrowest crops would have fewer pixels than their view
    side = max(math.ceil(kind.size / math.sqrt(kind.policy.area[0] * ASPECT[0])) for kind in kinds)
    image = decode_pixels(data, channels, at_least=(side, side))
    size = (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size
    return [resized_crop(image, draw_crop(kind.policy, size, rng), kind.size) for kind in kinds]
