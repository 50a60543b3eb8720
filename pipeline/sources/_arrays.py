"""Arrays of one or more numbers in each cell, as images, NumPy's arrays, PFM or OpenEXR: the labels of regression."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.data.arrays import decode_array
from pipeline.data.bands import MOST_CHANNELS
from pipeline.errors import DataError
from pipeline.recipe.base import BaseConfig, UniqueItems
from pipeline.sources import TrueLabels
from pipeline.sources._depth import RASTER_SUFFIXES, check_aspect
from pipeline.sources._rasters import RasterReader
from pipeline.storage.path import StoragePath
from pipeline.stores.labels import LabelSpace

TASK = "regression"
Factor = Annotated[float, Field(allow_inf_nan=False)]


class ArrayKeys(BaseConfig):
    """The keys that say what the numbers in arrays mean."""

    array_suffix: str | None = None
    """End of the arrays' stems that is not part of the images': `_dem` of `x_dem.tif`."""
    array_channels: Annotated[tuple[str, ...], UniqueItems, Field(min_length=1, max_length=MOST_CHANNELS)] = ("value",)
    """What the numbers in each cell of the arrays are, in their order: the files have as many."""
    unit: str | None = None
    """Unit of the arrays' numbers, as `m`."""
    factor: Factor = 1.0
    """Numbers of arrays in the `unit` are those in the files times this; 0.1 for elevation in decimetres."""
    unknown: Factor | None = None
    """The number in arrays that stands for unknown, as -9999; what is not finite is unknown in any case."""
    aligned: bool = True
    """True for arrays that lie over the image, whose aspect ratio they have: they are mirrored and cropped with it.
    False for others, such as the spectrogram of a sound: they stay whole, and are predicted from the whole image."""


class ArrayReader(RasterReader):
    """Reads arrays."""

    noun = "array"
    suffixes = RASTER_SUFFIXES

    def __init__(self, keys: ArrayKeys) -> None:
        self.keys = keys

    def spaces(self) -> dict[str, LabelSpace]:
        return {TASK: LabelSpace(TASK, self.keys.array_channels, unit=self.keys.unit or "", aligned=self.keys.aligned)}

    def read(self, file: StoragePath, name: str, size: tuple[int, int]) -> TrueLabels:
        named = self.keys.array_channels
        numbers = decode_array(file.read(), file.suffix, len(named))
        if numbers.ndim == 3 and numbers.shape[0] == len(named) != numbers.shape[2]:
            raise DataError(
                f"has the shape {numbers.shape}, not (height, width, {len(named)}): write the numbers of a cell last"
            )
        numbers = numbers[..., None] if numbers.ndim == 2 else numbers
        found = numbers.shape[2]
        if found != len(named):
            raise DataError(
                f"holds {found} numbers in each cell; `array_channels` names {len(named)} ({', '.join(named)})"
            )
        if self.keys.aligned:
            check_aspect(numbers, size)
        values = self._in_unit(numbers)
        if np.isnan(values).all():
            raise DataError("all of its numbers are unknown")
        return TrueLabels({TASK: {"values": values}})

    def _in_unit(self, numbers: NDArray[np.number]) -> NDArray[np.float32]:
        known = np.isfinite(numbers)
        if self.keys.unknown is not None:
            known &= numbers != self.keys.unknown
        with np.errstate(over="ignore"):
            values = (np.where(known, numbers, 0) * np.float64(self.keys.factor)).astype(np.float32)
        return np.where(known & np.isfinite(values), values, np.float32(np.nan))
