"""Read TIFF files: what their tags state, and numbers of any type, bands and pages. No torch.

Pillow reads some numbers of TIFF as others, or the first page alone, without an error: the tags tell which files it
reads as they are, and the package tifffile, an extra, reads all others.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from pipeline.errors import ConfigError, DataError, install_command
from pipeline.storage.shortage import raise_shortage

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What these files begin with."""
NOT_PILLOWS = b"MM\0+"
"""The beginning of those whose tags Pillow reads wrongly: large ones with the big end first."""
GDAL_NODATA = 42113
"""The tag with the number, as text, that stands for unknown."""
SIGNED = 2
"""TIFF's number for signed whole numbers, in the tag SampleFormat."""
KINDS = {1: "uint", SIGNED: "int", 3: "float", 5: "complex int", 6: "complex"}
PILLOWS = ("uint1", "uint2", "uint4", "uint8", "uint12", "uint16", "int16", "int32", "float32")
"""Types of numbers that Pillow reads as they are."""
COLORS = {2: 3, 5: 4, 6: 3, 8: 3}
"""Bands of colours by TIFF's number for their kind; all other kinds have one."""
ALPHA = (1, 2)
WHITE_IS_ZERO = 0
PREVIEW_OR_MASK = 0b101
"""Bits of the tag NewSubfileType of pages that are no images of their own."""
Tag = ExifTags.Base


class TiffPage(NamedTuple):
    """The first page of a TIFF, as its tags state it."""

    dtype: str
    """The type of its numbers, as `int8`."""
    bands: int
    is_plain: bool
    """True if Pillow reads the file's numbers, or its colours, as they are."""
    pages: int
    """1, or 2 for more than one; without those that show another one smaller, or where it is known."""
    unknown: float | None
    """The number that stands for unknown, if one is stated."""

    def describe(self) -> str:
        """Return what the file holds in words."""
        many = "several pages of " if self.pages > 1 else ""
        return f"a TIFF of {many}{f'{self.bands} bands of ' if self.bands > 1 else ''}{self.dtype}"


def read_page(data: bytes) -> TiffPage | None:
    """Return what a file's tags state; None for what is no TIFF, or too damaged to tell."""
    if not data.startswith(TIFF) or data.startswith(NOT_PILLOWS):
        return None
    try:
        first, *others = itertools.islice(_pages(data), 2)
        return _describe_page(first, 1 + len(others))
    except Exception as error:  # Pillow raises nearly anything on damaged tags
        raise_shortage(error, "reading a TIFF")
        return None


def needs_tifffile(data: bytes) -> bool:
    """Return True for a TIFF that Pillow reads wrongly or not at all, though it may be sound."""
    page = read_page(data)
    return data.startswith(NOT_PILLOWS) or (page is not None and not page.is_plain)


def stated_unknown(data: bytes) -> float | None:
    """Return the number that stands for unknown in a TIFF (GDAL_NODATA); None for other files, and without one."""
    page = read_page(data)
    return page.unknown if page else None


def decode_tiff(data: bytes, most_numbers: int) -> NDArray[Any]:
    """Decode a TIFF to its numbers, (H, W) or (H, W, C), whether bands are stored last, first, or on pages.

    Raises DataError with the reason; ConfigError if the package that reads it is missing.
    """
    try:
        import tifffile  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise _missing_extra(data) from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            whole = file.series[0]
            axes, shape = whole.axes, whole.shape
            if axes in ("YX", "YXS") or (len(axes) == 3 and axes.endswith("YX")):
                _check_page(whole.keyframe, most_numbers)
                check_count(shape, "an image", most_numbers)
                numbers = np.asarray(whole.asarray())
                if numbers.dtype.kind not in "buif":
                    raise DataError(f"holds {numbers.dtype}, no plain numbers")
                return numbers if axes in ("YX", "YXS") else np.moveaxis(numbers, 0, -1)
    except DataError:
        raise
    except Exception as error:  # tifffile raises nearly anything on damaged files
        raise_shortage(error, "decoding a TIFF")
        if "requires the 'imagecodecs' package" in str(error):
            raise _missing_extra(data) from error
        raise DataError(f"damaged, or no TIFF that can be read ({error})") from error
    raise DataError(f"a TIFF of the shape {shape}; rows, columns and bands, or a page for each band, would work")


def check_count(shape: tuple[int, ...], what: str, most: int) -> None:
    """Raise DataError if an array has more than `most` numbers; `what` names it."""
    if math.prod(shape) > most:
        raise DataError(f"{what} of {math.prod(shape):,} numbers, over the limit of {most:,}")


def _missing_extra(data: bytes) -> ConfigError:
    page = read_page(data)
    what = page.describe() if page else "a TIFF"
    return ConfigError(f"{what}, which needs the extra tiff: {install_command('tiff')}")


def _pages(data: bytes) -> Iterator[Mapping[int, Any]]:
    """Yield the tags of each page that is an image of its own."""
    file, seen = io.BytesIO(data), set[int]()
    tags = ImageFileDirectory_v2(data[:16] if data.startswith(TIFF[2:]) else data[:8])
    while tags.next and tags.next not in seen:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        if not int(tags.get(Tag.NewSubfileType, 0)) & PREVIEW_OR_MASK:
            yield dict(tags)


def _describe_page(tags: Mapping[int, Any], pages: int) -> TiffPage:
    bits, kinds = set(tags.get(Tag.BitsPerSample, (1,))), set(tags.get(Tag.SampleFormat, (1,)))
    types = [f"{KINDS.get(kind, 'unknown ')}{size}" for kind in sorted(kinds) for size in sorted(bits)]
    dtype, bands = " and ".join(types), int(tags.get(Tag.SamplesPerPixel, 1))
    extra = bands - COLORS.get(tags.get(Tag.PhotometricInterpretation, 1), 1)
    is_alpha = len([each for each in tags.get(Tag.ExtraSamples, ()) if each in ALPHA]) == extra
    known = dtype in PILLOWS and tags.get(Tag.Compression, 1) in COMPRESSION_INFO
    unknown = None
    with contextlib.suppress(ValueError):
        unknown = float(str(tags.get(GDAL_NODATA, "")).strip("\0 "))
    return TiffPage(dtype, bands, known and is_alpha and pages == 1, pages, unknown)


def _check_page(page: Any, most_numbers: int) -> None:
    """Raise DataError for a TIFF's page whose numbers would be read turned or inverted, or take too much memory."""
    check_count(page.chunks, "a tile or strip", most_numbers)  # decoded whole, whatever the image's size
    orientation = page.tags.get(Tag.Orientation)
    if orientation is not None and orientation.value != 1:
        raise DataError(f"is stored turned (orientation {orientation.value}); save it upright, with orientation 1")
    if page.photometric == WHITE_IS_ZERO:
        raise DataError("its numbers are stored inverted (WhiteIsZero); save them as BlackIsZero")
