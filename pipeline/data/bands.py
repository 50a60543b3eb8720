"""Decode images of any number of channels to numbers: NumPy's arrays, and TIFF of several bands. No torch.

What a set of three channels holds are pictures, and `pipeline.data.decode` reads them. Here numbers are kept as they
are stored, whatever their range, and in the file's order of channels.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.arrays import decode_npy
from pipeline.data.decode import PIXEL_LIMIT, Inspection, decode_image, decode_numbers, inspect_image
from pipeline.errors import DataError, install_command
from pipeline.storage.shortage import raise_shortage

RGB = 3
"""Channels of pictures, which are decoded as such."""
MOST_CHANNELS = 16
NPY, TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BAND_SUFFIXES = (".npy",)
"""Suffixes of images that are no pictures."""
PERCENTILES = (1, 99)
"""The range of a channel that a picture shows."""
Bands = NDArray[np.float32]
"""The numbers (H, W, C) of an image, float32."""
Pixels = Image.Image | Bands
"""An image in memory: a picture in RGB, or the numbers of an image of another number of channels."""


def decode_pixels(data: bytes, channels: int, at_least: tuple[int, int] | None = None) -> Pixels:
    """Decode an image of a set of so many channels: `decode_image` of 3, else `decode_bands`."""
    return decode_image(data, at_least) if channels == RGB else decode_bands(data, channels)


def decode_bands(data: bytes, channels: int) -> Bands:
    """Decode an image to its numbers, (H, W, `channels`) float32: uint8, uint16 and float32 without loss.

    Raises DataError, with the channels that the file has, if these are others, or a number is not finite.
    """
    if channels > 1 and not data.startswith((NPY, *TIFF)):
        raise DataError(f"is a picture, and no image of {channels} channels: these are TIFF files or NumPy's arrays")
    numbers = _decode(data)
    numbers = numbers[..., None] if numbers.ndim == 2 else numbers
    if (found := numbers.shape[2]) != channels:
        raise DataError(f"has {found} channels, not {channels}: make such images a set with `channels: {found}`")
    if numbers.dtype.kind not in "buif":
        raise DataError(f"holds {numbers.dtype}, no plain numbers")
    with np.errstate(over="ignore"):
        bands = numbers.astype(np.float32)
    if not np.isfinite(bands).all():
        raise DataError("holds numbers that are not finite; write a number for them that stands for no measurement")
    return bands


def inspect_pixels(data: bytes, channels: int) -> Inspection:
    """Read all of an image file of a set of so many channels, and return its size and format.

    Raises DataError, with the reason, on what `decode_pixels` could not use.
    """
    if channels == RGB:
        return _inspect_picture(data)
    height, width, _ = decode_bands(data, channels).shape
    suffix = "npy" if data.startswith(NPY) else "tif" if data.startswith(TIFF) else "png"
    return Inspection(width, height, suffix)


def _inspect_picture(data: bytes) -> Inspection:
    try:
        return inspect_image(data)
    except DataError as error:
        if data.startswith((NPY, *TIFF)):
            hint = "bands that are no picture are read in a set that states how many, as `channels: 5`"
            raise DataError(f"{error}; {hint}") from error
        raise


def decode_picture(data: bytes, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decode any image to a picture for people, RGB of 8 bits: of one that is no picture the first three channels, or
    the first alone, each stretched over its range. Raises DataError with the reason.
    """
    if data.startswith(NPY):
        return _picture(_decode(data))
    try:
        return decode_image(data, at_least)
    except DataError:
        if data.startswith(TIFF):
            return _picture(_decode(data))
        raise


def _decode(data: bytes) -> NDArray[Any]:
    """Return the numbers of a file, (H, W) or (H, W, C)."""
    if data.startswith(NPY):
        return decode_npy(data)
    return _decode_tiff(data) if data.startswith(TIFF) else decode_numbers(data)


def _decode_tiff(data: bytes) -> NDArray[Any]:
    """Return the numbers of a TIFF, the bands last, which may be stored in any order, or each on a page of its own."""
    try:
        import tifffile  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise DataError(f"a TIFF of several bands, which needs the extra tiff: {install_command('tiff')}") from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            whole = file.series[0]
            axes, shape = whole.axes, whole.shape
            if axes in ("YX", "YXS") or (len(axes) == 3 and axes.endswith("YX")):
                if math.prod(shape) > PIXEL_LIMIT * RGB:
                    raise DataError(f"{math.prod(shape):,} numbers, over the limit of {PIXEL_LIMIT * RGB:,}")
                numbers = np.asarray(whole.asarray())
                return numbers if axes in ("YX", "YXS") else np.moveaxis(numbers, 0, -1)
    except DataError:
        raise
    except Exception as error:  # tifffile raises nearly anything on damaged files
        raise_shortage(error, "decoding a TIFF")
        raise DataError(f"damaged, or no TIFF that can be read ({error})") from error
    raise DataError(f"a TIFF of the shape {shape}; rows, columns and bands, or a page for each band, would work")


def _picture(numbers: NDArray[Any]) -> Image.Image:
    bands = numbers[..., None] if numbers.ndim == 2 else numbers
    shown = bands[..., :RGB] if bands.shape[2] >= RGB else bands[..., :1].repeat(RGB, axis=2)
    flat = np.where(np.isfinite(shown), shown, 0).astype(np.float64)
    low, high = np.percentile(flat, PERCENTILES, axis=(0, 1))
    stretched = np.clip((flat - low) / np.maximum(high - low, np.finfo(np.float32).tiny), 0, 1)
    return Image.fromarray(np.rint(stretched * 255).astype(np.uint8))
