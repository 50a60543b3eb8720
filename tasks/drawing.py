"""Colours and text for drawing labels on images: one look for the report, the page and the exports."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Anchors of a perceptually ordered ramp from dark violet over teal to yellow, near to far.
_RAMP = np.array(
    [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]], dtype=np.float32
)


@functools.cache
def palette(count: int) -> NDArray[np.uint8]:
    """`count` colours (count, 3), neighbours far apart in hue: steps of the golden angle."""
    hues = (np.arange(count) * 0.61803398875 + 0.02) % 1.0
    lightness = np.where(np.arange(count) % 2, 0.95, 0.78)
    wheel = np.abs((hues[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    rgb = lightness[:, None] * (1 - 0.75 * (1 - np.clip(wheel, 0, 1)))
    return np.asarray(np.rint(rgb * 255), dtype=np.uint8)


def colormap(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values in [0, 1] (...,) as colours (..., 3)."""
    position = np.clip(share, 0, 1) * (len(_RAMP) - 1)
    low = np.minimum(position.astype(np.int64), len(_RAMP) - 2)
    part = (position - low)[..., None]
    return np.asarray(np.rint(_RAMP[low] * (1 - part) + _RAMP[low + 1] * part), dtype=np.uint8)


def enlarge(cells: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """A raster of colours (h, w, 3) as an image of `size` = (width, height), cells as blocks."""
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)


def caption(image: Image.Image, text: str, at: tuple[float, float] = (0, 0), above: bool = False) -> None:
    """Write `text` on the image in white on a dark bar, kept inside the image: its top left corner at `at`, or with
    `above` its bottom left one.
    """
    draw = ImageDraw.Draw(image)
    side = max(image.size)
    font = ImageFont.load_default(size=max(9, min(14, side // 12), side // 28))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x = max(0.0, min(at[0], image.width - (right - left) - 4))
    height = bottom - top + 4
    y = max(0.0, min(at[1] - height * above, image.height - height))
    draw.rectangle((x, y, x + right - left + 4, y + height), fill=(20, 20, 24))
    draw.text((x + 2 - left, y + 2 - top), text, fill=(255, 255, 255), font=font)


THUMBNAIL_SIDE = 192
"""Pixels of the longer side of a picture on a page."""


def thumbnail(image: Image.Image, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """The image with its longer side scaled, up or down, to `side` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
