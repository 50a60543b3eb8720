"""TIFF files of any type, bands and pages: read as written, or refused with what they hold."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.arrays import decode_array
from pipeline.data.bands import decode_bands
from pipeline.data.decode import decode_colors, decode_gray, decode_image, decode_numbers, inspect_image
from pipeline.data.tiff import needs_tifffile, read_page, stated_unknown
from pipeline.errors import ConfigError, DataError

LARGE = {"u1": 200, "i1": -50, "u2": 60_000, "i2": -30_000, "u4": 3_000_000_000, "i4": -2_000_000_000, "i8": -(2**40)}
NUMBERS: dict[str, NDArray[Any]] = {name: np.arange(24) + least for name, least in LARGE.items()}
NUMBERS |= {name: np.linspace(-4, 8, 24) for name in ("f2", "f4", "f8")}
PILLOWS = ("u1", "u2", "i2", "i4", "f4")


def tiff(numbers: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, numbers, **{"photometric": "minisblack", **options})
    return file.getvalue()


def numbers_of(dtype: str) -> NDArray[Any]:
    return NUMBERS[dtype].reshape(4, 6).astype(dtype)


def pages(count: int) -> bytes:
    return tiff(np.arange(24 * count, dtype=np.uint8).reshape(count, 4, 6))


def with_previews() -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for side in (64, 32, 16):
            writer.write(np.full((side, side), side, np.uint8), photometric="minisblack", subfiletype=int(side < 64))
    return file.getvalue()


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_decode_numbers_of_tiff_gives_every_type_as_written(dtype: str, byteorder: Any, bigtiff: bool) -> None:
    numbers = numbers_of(dtype)
    data = tiff(numbers, byteorder=byteorder, bigtiff=bigtiff)
    for found in (decode_numbers(data), decode_array(data, ".tif")):
        np.testing.assert_array_equal(found, numbers)
        assert found.dtype.isnative
    np.testing.assert_array_equal(decode_bands(data, 1)[..., 0], numbers.astype(np.float32))
    assert dtype == "u1" or (decode_gray(data) == numbers).all()


@pytest.mark.parametrize("dtype", NUMBERS)
def test_decode_numbers_of_tiff_without_the_extra_reads_it_as_written_or_names_its_type(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiff(numbers_of(dtype))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    if dtype in PILLOWS:
        assert (decode_numbers(data) == numbers_of(dtype)).all()
        return
    with pytest.raises(ConfigError, match=rf"a TIFF of {np.dtype(dtype)}, which needs the extra tiff: uv pip install"):
        decode_numbers(data)


def test_decode_numbers_of_tiff_refuses_pages_and_bands() -> None:
    bands = np.zeros((4, 6, 2), np.uint8)
    for data in (pages(2), tiff(bands, planarconfig="contig"), tiff(bands.astype(np.float32), planarconfig="contig")):
        for read in (decode_numbers, decode_gray):
            with pytest.raises(DataError, match="holds 2 bands or pages; save the one that is meant by itself"):
                read(data)


def test_decode_colors_refuses_several_pages_and_frames() -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    for kind in ("TIFF", "PNG", "GIF"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match="holds several pages or frames"):
            decode_colors(file.getvalue())


def test_decode_array_of_tiff_takes_pages_for_channels() -> None:
    found = decode_array(pages(2), ".tif")
    np.testing.assert_array_equal(found, np.moveaxis(np.arange(48).reshape(2, 4, 6), 0, -1))


def test_decode_numbers_of_tiff_takes_no_preview_for_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_previews()
    assert decode_bands(data, 1).shape == (64, 64, 1)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert decode_numbers(data).shape == (64, 64)


@pytest.mark.parametrize("read", [inspect_image, decode_image, decode_colors])
def test_decode_image_refuses_tiff_of_other_numbers_with_its_type(read: Any) -> None:
    with pytest.raises(DataError, match="pixels of signed numbers have no known range"):
        read(tiff(numbers_of("i1")))
    for dtype in ("f2", "f8"):
        with pytest.raises(DataError, match=f"a TIFF of {np.dtype(dtype)}, which is no picture"):
            read(tiff(numbers_of(dtype)))
    with pytest.raises(DataError, match="a TIFF of 5 bands of uint16, which is no picture"):
        read(tiff(np.zeros((4, 6, 5), np.uint16), planarconfig="contig"))


def test_read_page_of_damaged_files_is_none_or_whole() -> None:
    whole = tiff(numbers_of("f8"), extratags=[(42113, "s", 0, "-9999", True)])
    assert stated_unknown(whole) == -9999
    assert read_page(b"") is read_page(b"\x89PNG\r\n\x1a\n") is None
    for length in range(len(whole)):
        needs_tifffile(whole[:length])
    for place in range(len(whole) - 192):
        needs_tifffile(whole[:place] + b"\xff" + whole[place + 1 :])


@pytest.mark.parametrize(("text", "number"), [("-9999", -9999), ("0 ", 0), ("-3.40282e+38", -3.40282e38), ("x", None)])
def test_stated_unknown_is_that_of_the_tag(text: str, number: float | None) -> None:
    assert stated_unknown(tiff(numbers_of("f4"), extratags=[(42113, "s", 0, text, True)])) == number
    assert stated_unknown(tiff(numbers_of("f4"))) is None
