"""Windows of decoded images, drawn as torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` draw them, and the
views they become; colours change later, in batches on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.decode import decode
from selfsup.components.method import Policy, ViewKind

ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10


class Window(NamedTuple):
    """A part of an image in its pixels, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


def draw_window(policy: Policy, size: tuple[int, int], rng: np.random.Generator) -> Window:
    """A window of an image of `size` = (width, height): its share of the area uniform, its aspect ratio uniform in the
    logarithm; the central one with a ratio that is allowed if none of ten fits.
    """
    width, height = size
    chances = rng.random((ATTEMPTS, 4))
    flip = bool(rng.random() < policy.flip)
    low, high = (math.log(ratio) for ratio in ASPECT)
    for area, ratio, x, y in chances:
        wanted = width * height * (policy.area[0] + (policy.area[1] - policy.area[0]) * area)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(wanted * aspect)), round(math.sqrt(wanted / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Window(int(x * (width - w + 1)), int(y * (height - h + 1)), w, h, flip)
    w, h = width, height
    if width / height < ASPECT[0]:
        h = round(w / ASPECT[0])
    elif width / height > ASPECT[1]:
        w = round(h * ASPECT[1])
    return Window((width - w) // 2, (height - h) // 2, w, h, flip)


def cut_out(image: Image.Image, window: Window, size: int) -> NDArray[np.uint8]:
    """The window of an RGB image as (size, size, 3) uint8, bilinear with anti-aliasing."""
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    seen = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return np.asarray(seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window.flip else seen)


def enough(kinds: Sequence[ViewKind]) -> int:
    """The shorter side, pixels, below which an image decoded in less than its full size would make views blurred."""
    return max(math.ceil(kind.size / math.sqrt(kind.policy.area[0])) for kind in kinds)


def views_of(data: bytes, kinds: Sequence[ViewKind], rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """A view of each kind of an image, (S, S, 3), which is decoded once. DataError if it can't be."""
    side = enough(kinds)
    image = decode(data, at_least=(side, side))
    return [cut_out(image, draw_window(kind.policy, image.size, rng), kind.size) for kind in kinds]
