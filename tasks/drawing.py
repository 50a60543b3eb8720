"""Colors, captions and thumbnails for drawing labels: one look in the report, the browser and the exports."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# RGB anchors of a perceptually ordered colormap, from dark violet over teal to yellow.
_COLORMAP = np.array(
    [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]], dtype=np.float32
)


@functools.cache
def palette(count: int) -> NDArray[np.uint8]:
    """Return RGB colors, uint8 (count, 3), whose hues advance by the golden angle: neighbors are easy to tell apart."""
    hues = (np.arange(count) * 0.61803398875 + 0.02) % 1.0
    lightness = np.where(np.arange(count) % 2, 0.95, 0.78)
    wheel = np.abs((hues[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    rgb = lightness[:, None] * (1 - 0.75 * (1 - np.clip(wheel, 0, 1)))
    return np.asarray(np.rint(rgb * 255), dtype=np.uint8)


def colormap(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map values in [0, 1], of any shape (...), to RGB colors (..., 3)."""
    position = np.clip(values, 0, 1) * (len(_COLORMAP) - 1)
    low = np.minimum(position.astype(np.int64), len(_COLORMAP) - 2)
    weight = (position - low)[..., None]
    return np.asarray(np.rint(_COLORMAP[low] * (1 - weight) + _COLORMAP[low + 1] * weight), dtype=np.uint8)


def enlarge(cells: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Return a raster of RGB colors (h, w, 3) as an image of `size` = (width, height), each cell a block."""
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)


def caption(image: Image.Image, text: str, at: tuple[float, float] = (0, 0), above: bool = False) -> None:
    """Write `text` on the image, white on a dark bar whose top left (with `above`, bottom left) corner is `at`.

    `at` is in pixels; the bar is moved to lie inside the image.
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
"""Default longer side of a thumbnail, in pixels."""


def thumbnail(image: Image.Image, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """Return the image with its longer side scaled, up or down, to `side` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
