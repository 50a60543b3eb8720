"""Decode files of numbers for every pixel to arrays: images, NumPy's, PFM and OpenEXR. No torch.

All functions are pure and thread-safe, and take no more memory than a file can fill.
"""

from __future__ import annotations

import io
import math
import re
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import MOST_NUMBERS, PIXEL_LIMIT, decode_raster
from pipeline.data.tiff import decode_tiff, read_page
from pipeline.errors import ConfigError, DataError, install_command
from pipeline.storage.shortage import raise_shortage

LARGEST = np.float64(1e30)
"""Numbers of a larger size are no measurements, but mark their absence, and would overflow in networks."""
MOST_BYTES = PIXEL_LIMIT * 24
"""Bytes of an array: three numbers of 64 bits in each pixel."""
PFM_HEADER = re.compile(rb"(P[Ff])\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s")
EXR_CHANNELS = ("Z", "V", "Y", "R", "X")
"""Names of the channel of depth in an EXR file of several, the likeliest first; a layer may stand before them."""
VECTOR = 3
"""Numbers of a vector, which some programs store first."""
EXR_VECTORS = (("X", "Y", "Z"), ("R", "G", "B"))


def decode_array(data: bytes, suffix: str, channels: int = 1) -> NDArray[Any]:
    """Decode a file to its numbers, (H, W) or (H, W, C), the top row first.

    Axes of length 1 before and behind those that `channels` need are left out. Raises DataError with the reason;
    ConfigError if the package that reads the format is missing.

    Args:
        suffix: of the file, in lower case, which decides how it is read: `.npy`, `.npz`, `.pfm`, `.exr`; any other
            is read as an image of one channel, or a TIFF of any.
        channels: numbers in each cell that are wanted; the file may have others.
    """
    if not data:
        raise DataError("empty file")
    if suffix in DECODERS:
        return _raster(DECODERS[suffix](data), channels)
    page = read_page(data)
    return decode_tiff(data, MOST_NUMBERS) if page and page.bands == channels > 1 else decode_raster(data)


def decode_npy(data: bytes) -> NDArray[Any]:
    """Decode NumPy's `.npy`. Raises DataError on objects and damaged files."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_order, dtype = read(file)
        if dtype.kind not in "buif":
            raise DataError(f"an array of {dtype}, not of numbers")
        count = math.prod(shape)
        if len(data) - file.tell() < count * dtype.itemsize:
            raise DataError(f"truncated: the numbers of {shape} in {dtype} are not there")
        values = np.frombuffer(data, dtype, count, file.tell())
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, OverflowError, RecursionError) as error:
        raise DataError(f"no array of NumPy ({error})") from error
    values = values.astype(dtype.newbyteorder("="))
    return values.reshape(shape, order="F" if column_order else "C")


def decode_npz(data: bytes) -> NDArray[Any]:
    """Decode NumPy's `.npz`. Raises DataError unless it holds one array."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) != 1:
                raise DataError(f"holds {len(entries)} arrays ({', '.join(e.filename for e in entries[:5])}), not one")
            if entries[0].file_size > MOST_BYTES:
                raise DataError(f"an array of {entries[0].file_size:,} bytes; {MOST_BYTES:,} are read")
            with archive.open(entries[0]) as member:
                return decode_npy(member.read(entries[0].file_size))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise_shortage(error, "an .npz file")
        raise DataError(f"no whole .npz file ({error})") from error


def decode_pfm(data: bytes) -> NDArray[Any]:
    """Decode a portable float map: `Pf` of one channel, `PF` of three; float32, rows stored from the bottom up.

    The sign of its scale says the order of bytes: negative for the little end first. Its size is not applied.
    """
    header = PFM_HEADER.match(data)
    if header is None:
        raise DataError(f"no PFM file (it begins with {data[:16]!r})")
    width, height, channels = int(header[2]), int(header[3]), 3 if header[1] == b"PF" else 1
    count = width * height * channels
    if len(data) - header.end() < count * 4 or not count:
        raise DataError(f"truncated or empty: {width}x{height} numbers are not there")
    try:
        order = "<" if float(header[4]) < 0 else ">"
    except ValueError as error:
        raise DataError(f"its scale {header[4]!r} is no number") from error
    values = np.frombuffer(data, f"{order}f4", count, header.end()).astype(np.float32)
    return values.reshape(height, width, channels)[::-1]


def decode_exr(data: bytes) -> NDArray[Any]:
    """Decode OpenEXR: three channels X, Y, Z or R, G, B that differ as (H, W, 3), else one, which is `Z` if it exists.

    Raises ConfigError if the package OpenEXR is missing.
    """
    try:
        import OpenEXR  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"EXR files need the extra exr: {install_command('exr')}") from error
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:  # the package reads files only
        file.write(data)
        file.flush()
        try:
            header = OpenEXR.File(file.name, separate_channels=True, header_only=True).header()
            low, high = header["dataWindow"]
            if math.prod(int(side) + 1 for side in high - low) > PIXEL_LIMIT:
                raise DataError(f"more than {PIXEL_LIMIT:,} pixels")
            with OpenEXR.File(file.name, separate_channels=True) as opened:
                return _pick_channels({name: np.array(each.pixels) for name, each in opened.channels().items()})
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise_shortage(error, "an EXR file")
            raise DataError(f"damaged or no EXR file ({error})") from error


def _pick_channels(channels: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    by_name = {name.rpartition(".")[2].upper(): values for name, values in channels.items()}
    for names in EXR_VECTORS:
        if all(name in by_name for name in names):
            vectors = [by_name[name] for name in names]
            same = all(np.array_equal(vectors[0], other, equal_nan=True) for other in vectors[1:])
            return vectors[0] if same else np.stack(vectors, axis=-1)
    name = next((name for name in EXR_CHANNELS if name in by_name), None)
    if name is None and len(by_name) != 1:
        raise DataError(f"none of the channels {', '.join(channels)} is known as depth or normals")
    return by_name[name] if name else next(iter(by_name.values()))


def _raster(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """Return values as (H, W) or (H, W, C). Raises DataError on other shapes and too many pixels."""
    axes = 2 if channels == 1 else 3
    while values.ndim > axes and 1 in (values.shape[0], values.shape[-1]):
        values = values[..., 0] if values.shape[-1] == 1 else values[0]
    if values.ndim == 3 and channels == values.shape[0] == VECTOR != values.shape[-1]:
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3) or not values.size:
        raise DataError(f"an array of the shape {values.shape}, not (height, width)")
    if values.shape[0] * values.shape[1] > PIXEL_LIMIT:
        raise DataError(f"{values.shape[0] * values.shape[1]:,} pixels, over the limit of {PIXEL_LIMIT:,}")
    return np.ascontiguousarray(values)


def holds(numbers: NDArray[Any], value: float) -> NDArray[np.bool_]:
    """Return where numbers (H, W, ...) are `value`, or as near to it as their type comes."""
    with np.errstate(over="ignore"):
        return np.equal(numbers, numbers.dtype.type(value) if numbers.dtype.kind == "f" else value)


DECODERS: dict[str, Callable[[bytes], NDArray[Any]]] = {
    ".npy": decode_npy,
    ".npz": decode_npz,
    ".pfm": decode_pfm,
    ".exr": decode_exr,
}
ARRAY_SUFFIXES = tuple(DECODERS)
