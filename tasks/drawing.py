"""Colors, captions and thumbnails for drawing labels: one look in the report, the browser and the exports."""

from __future__ import annotations

import functools
from collections.abc import Iterable

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


def caption(
    image: Image.Image, text: str, at: tuple[float, float] = (0, 0), above: bool = False, size: int = 0
) -> float:
    """Write `text` on the image, white on a dark bar whose top left (with `above`, bottom left) corner is `at`.

    `at` is in pixels; the bar is moved to lie inside the image. `size` is that of the letters, 0 for one that suits the
    image. Returns the height of the bar.
    """
    draw = ImageDraw.Draw(image)
    side = max(image.size)
    font = ImageFont.load_default(size=size or max(9, min(14, side // 12), side // 28))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x = max(0.0, min(at[0], image.width - (right - left) - 4))
    height = bottom - top + 4
    y = max(0.0, min(at[1] - height * above, image.height - height))
    draw.rectangle((x, y, x + right - left + 4, y + height), fill=(20, 20, 24))
    draw.text((x + 2 - left, y + 2 - top), text, fill=(255, 255, 255), font=font)
    return height


DASH = 5
"""Dashes of a side of a box, about as long as the gaps between them."""


def outline(image: Image.Image, box: NDArray[np.floating], color: NDArray[np.uint8], dashed: bool = False) -> None:
    """Outline a box (x0, y0, x1, y1), in pixels, on the image."""
    draw, fill = ImageDraw.Draw(image), tuple(int(part) for part in color)
    width = max(1, max(image.size) // 96)
    x0, y0, x1, y1 = (float(edge) for edge in box)
    if not dashed:
        draw.rectangle((x0, y0, x1, y1), outline=fill, width=width)
        return
    shares = np.linspace(0, 1, 2 * DASH)
    for start, end in zip(shares[::2], shares[1::2], strict=True):
        left, right = x0 + start * (x1 - x0), x0 + end * (x1 - x0)
        top, bottom = y0 + start * (y1 - y0), y0 + end * (y1 - y0)
        for y in (y0, y1):
            draw.line((left, y, right, y), fill=fill, width=width)
        for x in (x0, x1):
            draw.line((x, top, x, bottom), fill=fill, width=width)


def draw_points(
    image: Image.Image,
    points: NDArray[np.floating],
    filled: NDArray[np.bool_],
    lines: Iterable[tuple[int, int]],
    color: NDArray[np.uint8],
) -> None:
    """Draw points (K, 2), in pixels, on the image: discs where `filled` (K,) is true, else rings.

    `lines` are pairs of points, by index, to join.
    """
    draw, fill = ImageDraw.Draw(image), tuple(int(part) for part in color)
    width, radius = max(1, max(image.size) // 192), max(1.5, max(image.size) / 128)
    for one, other in lines:
        draw.line((*points[one].tolist(), *points[other].tolist()), fill=fill, width=width)
    for (x, y), is_filled in zip(points.tolist(), filled.tolist(), strict=True):
        corners = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(corners, fill=fill if is_filled else (20, 20, 24), outline=fill, width=width)


def frame(image: Image.Image, color: tuple[int, int, int], dashed: bool = False) -> None:
    """Draw a thin frame just inside the edges of the image."""
    outline(image, np.array([0, 0, image.width - 1, image.height - 1]), np.array(color, np.uint8), dashed)


def contours(cells: NDArray[np.integer], size: tuple[int, int], dashed: bool = True) -> NDArray[np.bool_]:
    """Return where a raster of classes (h, w), as an image of `size` = (width, height), changes: (H, W)."""
    rows = np.arange(size[1])[:, None] * cells.shape[0] // size[1]
    columns = np.arange(size[0])[None, :] * cells.shape[1] // size[0]
    large = cells[rows, columns]
    edges = np.zeros(large.shape, bool)
    edges[:, 1:] |= large[:, 1:] != large[:, :-1]
    edges[1:] |= large[1:] != large[:-1]
    edges[:, :-1] |= edges[:, 1:]  # two pixels wide
    edges[:-1] |= edges[1:]
    if not dashed:
        return edges
    dash = max(3, max(size) // 48)
    stripes = (np.arange(size[0])[None, :] + np.arange(size[1])[:, None]) // dash % 2 == 0
    return np.asarray(edges & stripes)


THUMBNAIL_SIDE = 192
"""Default longer side of a thumbnail, in pixels."""


def thumbnail(image: Image.Image, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """Return the image with its longer side scaled, up or down, to `side` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
