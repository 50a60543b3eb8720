"""Colours and brightness of image files that stand for labels, value for value."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import decode_colors, decode_gray, decode_numbers
from pipeline.errors import DataError

COLORS = np.array([[[128, 64, 128], [0, 0, 0]], [[244, 35, 232], [255, 255, 255]]], np.uint8)
GRAY = np.array([[0, 255, 3], [7, 128, 127]], np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_decode_colors_gives_colors_as_stored(kind: str) -> None:
    found = decode_colors(encode(Image.fromarray(COLORS), kind))
    assert found.dtype == np.uint8
    assert found.tolist() == COLORS.tolist()


def test_decode_colors_of_palettes_gray_and_transparent_images() -> None:
    palette = Image.fromarray(np.array([[1, 0]], np.uint8))
    palette.putpalette([9, 8, 7, 128, 64, 128])
    assert decode_colors(encode(palette)).tolist() == [[[128, 64, 128], [9, 8, 7]]]
    assert decode_colors(encode(Image.fromarray(GRAY))).tolist() == np.stack([GRAY] * 3, -1).tolist()
    clear = Image.fromarray(np.dstack([COLORS, np.zeros((2, 2), np.uint8)]))
    assert decode_colors(encode(clear)).tolist() == COLORS.tolist(), "transparency is no colour"


def test_decode_colors_turns_them_upright_and_refuses_jpegs() -> None:
    exif = Image.Exif()
    exif[274] = 3
    assert decode_colors(encode(Image.fromarray(COLORS), exif=exif)).tolist() == COLORS[::-1, ::-1].tolist()
    with pytest.raises(DataError, match="JPEG changes the numbers"):
        decode_colors(encode(Image.fromarray(COLORS), "JPEG"))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_decode_numbers_and_gray_of_gray_in_any_mode(mode: str) -> None:
    data = encode(Image.fromarray(GRAY).convert(mode))
    assert decode_numbers(data).tolist() == GRAY.tolist()
    assert decode_gray(data).tolist() == GRAY.tolist()


def test_decode_gray_of_jpegs_palettes_and_16_bits() -> None:
    light = Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 16, 1).repeat(8, 0))
    assert (decode_gray(encode(light, "JPEG")) >= 128).tolist() == (np.asarray(light) >= 128).tolist()
    palette = Image.fromarray(np.array([[1, 0]], np.uint8))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    assert decode_gray(encode(palette)).tolist() == [[255, 0]]
    assert decode_gray(encode(Image.new("1", (2, 1), 1))).tolist() == [[255, 255]]
    wide = np.array([[7, 40_000]], np.uint16)
    assert decode_gray(encode(Image.fromarray(wide))).tolist() == wide.tolist()
