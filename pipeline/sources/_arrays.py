"""Arrays of one or more numbers in each cell, as images, NumPy's arrays, PFM or OpenEXR: the labels of regression."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from pipeline.data.arrays import LARGEST, decode_array, holds
from pipeline.data.bands import MOST_CHANNELS
from pipeline.data.tiff import stated_unknown
from pipeline.errors import DataError
from pipeline.recipe.base import BaseConfig, UniqueItems
from pipeline.sources import TrueLabels
from pipeline.sources._depth import RASTER_SUFFIXES, TOO_LARGE, check_aspect
from pipeline.sources._rasters import RasterReader
from pipeline.storage.path import StoragePath
from pipeline.stores.labels import LabelSpace

TASK = "regression"
Number = Annotated[float, Field(allow_inf_nan=False)]


def _check_factor(factor: float) -> float:
    if factor == 0:
        raise ValueError("all numbers times 0 are 0; leave `factor` out for numbers that are in the `unit`")
    return factor


class ArrayKeys(BaseConfig):
    """The keys that say what the numbers in arrays mean."""

    array_suffix: str | None = None
    """End of the arrays' stems that is not part of the images': `_dem` of `x_dem.tif`."""
    array_channels: Annotated[tuple[str, ...], UniqueItems, Field(min_length=1, max_length=MOST_CHANNELS)] = ("value",)
    """What the numbers in each cell of the arrays are, in their order: the files have as many."""
    unit: str | None = None
    """Unit of the arrays' numbers, as `m`."""
    factor: Annotated[Number, AfterValidator(_check_factor)] = 1.0
    """Numbers of arrays in the `unit` are those in the files times this; 0.1 for elevation in decimetres."""
    unknown: Number | None = None
    """The number in arrays that stands for unknown, as -9999; what is not finite, above 1e30 in size, or what
    a TIFF states as unknown (GDAL_NODATA) is unknown in any case."""
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
        data = file.read()
        numbers = decode_array(data, file.suffix, len(named))
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
        values, too_large = self._in_unit(numbers, self._unknown(stated_unknown(data)))
        if np.isnan(values).all():
            scaled = f" times `factor` {self.keys.factor:g}" if self.keys.factor != 1 else ""
            reason = f"above {LARGEST:g} in size{scaled}, or unknown" if too_large else "unknown"
            raise DataError(f"all of its numbers are {reason}")
        return TrueLabels({TASK: {"values": values}}, [f"{TOO_LARGE}: {too_large:,} numbers"] if too_large else [])

    def _unknown(self, stated: float | None) -> float | None:
        """Return the number for unknown. Raises DataError if the file states another one than the recipe."""
        named = self.keys.unknown
        if None not in (stated, named) and stated != named:
            raise DataError(f"states that {stated:g} is unknown (GDAL_NODATA), and the recipe's `unknown` is {named:g}")
        return named if stated is None else stated

    def _in_unit(self, numbers: NDArray[np.number], unknown: float | None) -> tuple[NDArray[np.float32], int]:
        """Return numbers in the unit, NaN where they are not known, and how many of them are too large to be one."""
        known = np.isfinite(numbers)
        if unknown is not None:
            known &= ~holds(numbers, unknown)
        with np.errstate(over="ignore"):
            values = np.where(known, numbers, 0) * np.float64(self.keys.factor)
            usable = known & (np.abs(numbers.astype(np.float64)) <= LARGEST) & (np.abs(values) <= LARGEST)
        return np.where(usable, values, np.nan).astype(np.float32), int((known & ~usable).sum())
