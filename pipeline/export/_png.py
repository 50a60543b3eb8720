"""Helpers that turn dense labels into the pixels of PNG files: class ids, lengths, directions."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.stores.labels import IGNORE

UINT16_MAX = 65535


def to_class_ids(classes: NDArray[Any], count: int) -> NDArray[Any]:
    """Return class ids (H, W) of `count` classes without loss, in 8 bits if they fit; `unknown_id` is unknown."""
    dtype = np.uint8 if count < 255 else np.uint16
    return np.where(classes == IGNORE, unknown_id(count), classes).astype(dtype)


def unknown_id(count: int) -> int:
    """Return the id of an unknown class among `count` classes: the largest number of 8 or 16 bits."""
    return 255 if count < 255 else IGNORE


def depth_pixels(
    depth: NDArray[np.float32], scale: Literal["metric", "relative"], counts: Counter[str]
) -> NDArray[np.uint16]:
    """Return depth (H, W), 0 = unknown, in 16 bits.

    Metric depth is rounded to millimetres, but at least 1; what is farther than 65.535 m becomes unknown, and is added
    to `counts`. Relative (inverse) depth is scaled so that the nearest pixel is 65535.
    """
    if scale == "relative":
        scaled = np.rint(depth.astype(np.float64) / max(float(depth.max()), 1e-12) * UINT16_MAX)
        return np.where(depth > 0, np.maximum(scaled, 1), 0).astype(np.uint16)
    rounded = np.rint(depth.astype(np.float64) * 1000)
    far = rounded > UINT16_MAX
    if far.any():
        counts["pixels farther than 65.535 m, now unknown"] += int(far.sum())
    return np.where((depth > 0) & ~far, np.maximum(rounded, 1), 0).astype(np.uint16)


def normals_to_rgb(normals: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return unit vectors (H, W, 3) as RGB, round((n + 1) * 127.5): at most half a degree off; unknown is black."""
    return (np.rint((normals + 1) * 127.5) * normals.any(axis=-1, keepdims=True)).astype(np.uint8)


def png(pixels: NDArray[Any]) -> bytes:
    """Return the bytes of a PNG file of these pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
