"""Normal maps: unit vectors in camera axes as colours, NumPy's arrays, PFM or OpenEXR.

A channel of 8 bits is round((n + 1) * 127.5). Where the vector has no length near 1, as black has, it is unknown.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.arrays import ARRAY_SUFFIXES, decode_array
from pipeline.data.decode import decode_colors
from pipeline.errors import DataError
from pipeline.recipe.base import BaseConfig, UniqueItems
from pipeline.sources import TrueLabels
from pipeline.sources._depth import RASTER_SUFFIXES, check_aspect
from pipeline.sources._rasters import RasterReader
from pipeline.storage.path import StoragePath
from pipeline.stores.labels import LabelSpace
from pipeline.stores.rasters import FULL_IMAGE, resample_nearest

AXES = ("x", "y", "z")
LENGTHS = (0.5, 1.5)
"""Lengths of vectors that are taken for unit vectors: those of 8 bits are off by 0.02, and blends at edges by more."""
LARGEST = 1.01
"""Parts of a unit vector that a program may have rounded."""
FACES_AWAY = -0.5
"""The z of a normal that is seen from behind, even at the edge of a wide image."""
Floats = NDArray[np.float32]


class NormalKeys(BaseConfig):
    """The keys that say what the numbers in normal maps mean."""

    normals_suffix: str | None = None
    """End of the normal maps' stems that is not part of the images': `_normal` of `x_normal.png`."""
    flip: Annotated[tuple[Literal["x", "y", "z"], ...], UniqueItems] = ()
    """Axes that point the other way in the files. Ours are the camera's: x right, y up, z towards the camera. Files
    whose y points down and z away from the camera need `[y, z]`."""


class NormalReader(RasterReader):
    """Reads normal maps."""

    noun = "normal map"
    suffixes = RASTER_SUFFIXES

    def __init__(self, keys: NormalKeys) -> None:
        self._signs = np.array([-1 if axis in keys.flip else 1 for axis in AXES], np.float32)

    def spaces(self) -> dict[str, LabelSpace]:
        return {"normals": LabelSpace("normals")}

    def read(self, file: StoragePath, name: str, size: tuple[int, int]) -> TrueLabels:
        normals = unit_vectors(_vectors(file)) * self._signs
        check_aspect(normals, size)
        known = normals.any(axis=-1)
        if not known.any():
            raise DataError("all of its normals are unknown")
        if (behind := float((normals[known][:, 2] < FACES_AWAY).mean())) > 0.5:
            way_out = "leave z out of `flip`" if self._signs[2] < 0 else "`flip: [z]` turns them"
            raise DataError(f"{behind:.0%} of its normals point away from the camera; {way_out}")
        return TrueLabels({"normals": {"normals": resample_nearest(normals, FULL_IMAGE, size[::-1], 0)}})


def unit_vectors(vectors: Floats) -> Floats:
    """Return vectors (H, W, 3) at length 1, and (0, 0, 0) for those whose length is not near it."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    known = (length >= LENGTHS[0]) & (length <= LENGTHS[1])
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=known)


def _vectors(file: StoragePath) -> Floats:
    """Return the vectors (H, W, 3) in a file, of any length; what is not finite is 0."""
    if file.suffix not in ARRAY_SUFFIXES:
        return _from_bytes(decode_colors(file.read()))
    numbers = decode_array(file.read(), file.suffix, len(AXES))
    if numbers.ndim != 3 or numbers.shape[2] != len(AXES):
        raise DataError(f"an array of the shape {numbers.shape}, not (height, width, 3)")
    if numbers.dtype == np.uint8:
        return _from_bytes(numbers)
    vectors = np.where(np.isfinite(numbers), numbers, 0)
    largest = float(np.abs(vectors).max())
    if largest > LARGEST:
        raise DataError(f"holds numbers up to {largest:g}; parts of unit vectors are from -1 to 1")
    return vectors.astype(np.float32)


def _from_bytes(colors: NDArray[Any]) -> Floats:
    return (colors.astype(np.float32) * 2 - 255) / np.float32(255)  # rounded once
