"""Decode images of any number of channels to numbers: NumPy's arrays, and TIFF of several bands. No torch.

What a set of three channels holds are pictures, and `pipeline.data.decode` reads them. Here numbers are kept as they
are stored, whatever their range, and in the file's order of channels.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.arrays import LARGEST, decode_array, holds
from pipeline.data.decode import (
    MOST_NUMBERS,
    Inspection,
    decode_image,
    decode_numbers,
    decode_raster,
    inspect_image,
    is_picture,
)
from pipeline.data.tiff import TIFF, check_count, decode_tiff, stated_unknown
from pipeline.errors import DataError

RGB = 3
"""Channels of pictures, which are decoded as such."""
MOST_CHANNELS = 16
NPY = b"\x93NUMPY"
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

    Raises DataError, with the channels that the file has, if these are others, and with the first number that is not
    finite, above LARGEST in size, or unknown by what the file states.
    """
    if not data:
        raise DataError("empty file")
    if channels > 1 and not data.startswith((NPY, *TIFF)):
        found = "is a picture" if is_picture(data) else f"begins with {data[:16]!r}"
        raise DataError(f"{found}, and no image of {channels} channels: these are TIFF files or NumPy's arrays")
    numbers = decode_raster(data) if channels == 1 and data.startswith(TIFF) else _decode(data, channels)
    numbers = numbers[..., None] if numbers.ndim == 2 else numbers
    _check_channels(numbers.shape, channels)
    _check_range(numbers, stated_unknown(data))
    return numbers.astype(np.float32)


def _check_channels(shape: tuple[int, ...], channels: int) -> None:
    found = shape[2]
    if found == channels:
        return
    if found > MOST_CHANNELS:
        raise DataError(
            f"has the shape {shape}, not (height, width, {channels}): write the bands last, or a TIFF that states its "
            "planar configuration"
        )
    set_of_such = "of pictures, without the key `channels`" if found == RGB else f"with `channels: {found}`"
    raise DataError(f"has {found} channels, not {channels}: make such images a set {set_of_such}")


def _check_range(numbers: NDArray[Any], unknown: float | None) -> None:
    usable = np.abs(numbers) <= LARGEST if numbers.dtype.kind == "f" else np.ones(numbers.shape, np.bool_)  # not NaN
    if unknown is not None:
        usable &= ~holds(numbers, unknown)
    if usable.all():
        return
    row, column, channel = (int(each) for each in np.unravel_index(usable.argmin(), numbers.shape))
    stated = f", or {unknown:g}, which the file states as unknown (GDAL_NODATA)" if unknown is not None else ""
    raise DataError(
        f"holds {int((~usable).sum()):,} numbers that are not finite or above {LARGEST:g}{stated}, the first of them, "
        f"{numbers[row, column, channel]:g}, in channel {channel + 1}, row {row + 1}, column {column + 1}: images have "
        "no number for missing measurements; fill them from their surroundings, or leave the image out"
    )


def resize_bands(bands: Bands, box: tuple[float, float, float, float], size: tuple[int, int]) -> Bands:
    """Return the region `box` (x0, y0, x1, y1), in pixels, of bands (H, W, C), resized to `size` (width, height):
    bilinear with anti-aliasing, each channel alone.
    """
    resized = np.empty((size[1], size[0], bands.shape[2]), np.float32)
    for channel in range(bands.shape[2]):
        band = Image.fromarray(np.ascontiguousarray(bands[..., channel]))
        resized[..., channel] = np.asarray(band.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))
    return resized


def inspect_pixels(data: bytes, channels: int) -> Inspection:
    """Read all of an image file of a set of so many channels, and return its size and format.

    Raises DataError, with the reason, on what `decode_pixels` could not use.
    """
    if channels == RGB:
        return _inspect_picture(data)
    return inspect_bands(data, channels)[0]


def inspect_bands(data: bytes, channels: int) -> tuple[Inspection, Bands]:
    """Return an image's size and format with its numbers, which are decoded to tell. Raises as `decode_bands` does."""
    bands = decode_bands(data, channels)
    suffix = "npy" if data.startswith(NPY) else "tif" if data.startswith(TIFF) else "png"
    return Inspection(bands.shape[1], bands.shape[0], suffix), bands


def channels_of(data: bytes) -> int:
    """Return the channels with which an image file can be read: RGB for pictures, and for what can't be read at all.

    Raises ConfigError if the package that tells is missing.
    """
    try:
        inspect_image(data)
    except DataError:
        with contextlib.suppress(DataError):
            shape = _decode(data, RGB).shape if data.startswith((NPY, *TIFF)) else (0, 0, RGB)
            found = shape[2] if len(shape) > 2 else 1
            return found if found <= MOST_CHANNELS else RGB
    return RGB


def _inspect_picture(data: bytes) -> Inspection:
    try:
        return inspect_image(data)
    except DataError as error:
        if data.startswith((NPY, *TIFF)):
            hint = "bands that are no picture are read in a set that states how many, as `channels: 5`"
            raise DataError(f"{error}; {hint}") from error
        raise


def decode_picture(data: bytes, at_least: tuple[int, int] | None = None, channels: int = RGB) -> Image.Image:
    """Decode any image to a picture for people, RGB of 8 bits: of one that is no picture the first three channels, or
    the first alone, each stretched over its range. Raises DataError with the reason.

    Args:
        channels: of the set, or those that a model takes. Of a file from elsewhere, RGB: what is no picture is then
            recognised where Pillow can't read it.
    """
    if channels != RGB:
        return _picture(decode_bands(data, channels))
    if data.startswith(NPY):
        return _picture(_decode(data, RGB))
    try:
        return decode_image(data, at_least)
    except DataError:
        if data.startswith(TIFF):
            return _picture(_decode(data, RGB))
        raise


def _decode(data: bytes, channels: int) -> NDArray[Any]:
    """Return the numbers of a file, (H, W) or (H, W, C)."""
    if data.startswith(NPY):
        numbers = decode_array(data, ".npy", channels)
        check_count(numbers.shape, "an array", MOST_NUMBERS)
        return numbers
    return decode_tiff(data, MOST_NUMBERS) if data.startswith(TIFF) else decode_numbers(data)


def _picture(numbers: NDArray[Any]) -> Image.Image:
    bands = numbers[..., None] if numbers.ndim == 2 else numbers
    shown = bands[..., :RGB] if bands.shape[2] >= RGB else bands[..., :1].repeat(RGB, axis=2)
    flat = np.where(np.isfinite(shown), shown, 0).astype(np.float64)
    low, high = np.percentile(flat, PERCENTILES, axis=(0, 1))
    stretched = np.clip((flat - low) / np.maximum(high - low, np.finfo(np.float32).tiny), 0, 1)
    return Image.fromarray(np.rint(stretched * 255).astype(np.uint8))
