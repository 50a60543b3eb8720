"""Dense labels as the pixels of PNG files: class ids, lengths, directions; each states what is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE = 65535
"""What the arrays of a segmentation label hold where the class is unknown."""
MOST = 65535
"""The largest number of 16 bits."""
FARTHEST_M = MOST / 1000


def class_ids(classes: NDArray[Any], count: int) -> NDArray[Any]:
    """Class ids (H, W) of `count` classes, in 8 bits where they fit; the largest number is unknown. Nothing is lost."""
    kind = np.uint8 if count < 255 else np.uint16
    return np.where(classes == IGNORE, np.iinfo(kind).max, classes).astype(kind)


def unknown_id(count: int) -> int:
    """What `class_ids` gives for an unknown class."""
    return 255 if count < 255 else IGNORE


def millimetres(metres: NDArray[np.float32]) -> tuple[NDArray[np.uint16], int]:
    """Depth in metres (H, W), 0 = unknown -> millimetres, rounded to the nearest but at least 1, and how many pixels
    are farther than 65.535 m: these become unknown.
    """
    rounded = np.rint(metres.astype(np.float64) * 1000)
    known, far = metres > 0, rounded > MOST
    return np.where(known & ~far, np.maximum(rounded, 1), 0).astype(np.uint16), int(far.sum())


def shares_of_nearest(inverse: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Relative inverse depth (H, W), 0 = unknown -> the same scaled so that the largest is 65535."""
    scaled = np.rint(inverse.astype(np.float64) / max(float(inverse.max()), 1e-12) * MOST)
    return np.where(inverse > 0, np.maximum(scaled, 1), 0).astype(np.uint16)


def directions(normals: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Unit vectors (H, W, 3) -> RGB, round((n + 1) * 127.5), off by at most half a degree; unknown ones are black."""
    return (np.rint((normals + 1) * 127.5) * normals.any(axis=-1, keepdims=True)).astype(np.uint8)
