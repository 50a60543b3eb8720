"""Decoding: files of every kind give the image they show, and what is no image raises an error with the reason."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from pipeline.data import decode
from pipeline.data.decode import PIXEL_LIMIT, decode_image, decode_numbers, inspect_image
from pipeline.errors import ConfigError, DataError

ORIENTATION = 274
COLORS = np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [250, 250, 10]]], np.uint8)
QUARTERS = COLORS.repeat(32, axis=0).repeat(48, axis=1)
"""Upright, 96 wide and 64 high: red, green above blue, yellow."""


def encode(image: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def as_stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return an image as a file stores it, by the EXIF 2.32 table: orientation 6 has the right side in row 0."""
    turned = upright.transpose(1, 0, 2)
    return np.ascontiguousarray(
        {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: turned,
            6: turned[::-1],
            7: turned[::-1, ::-1],
            8: turned[:, ::-1],
        }[orientation]
    )


def photograph(width: int = 90, height: int = 60) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that states a size but has hardly any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_image_applies_exif_orientation_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(as_stored(QUARTERS, orientation), kind, exif=exif)
    found = inspect_image(data)
    picture = decode_image(data)
    assert (found.width, found.height) == picture.size == (96, 64)
    assert np.abs(np.asarray(picture)[8::16, 8::16].astype(int) - QUARTERS[8::16, 8::16]).max() < 12
    again = ImageOps.exif_transpose(picture)
    assert np.array_equal(np.asarray(again), np.asarray(picture))


@pytest.mark.parametrize(("at_least", "size"), [((24, 16), (24, 16)), ((25, 16), (48, 32)), ((24, 17), (48, 32))])
@pytest.mark.parametrize("orientation", [1, 6])
def test_decode_image_reduces_a_jpeg_no_further_than_at_least(
    at_least: tuple[int, int], size: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = decode_image(encode(as_stored(QUARTERS, orientation), "JPEG", exif=exif), at_least)
    assert picture.size == size
    assert np.abs(np.asarray(picture)[3, 3].astype(int) - [250, 10, 10]).max() < 12


def test_decode_image_never_enlarges_and_reduces_no_other_format() -> None:
    assert decode_image(encode(QUARTERS, "JPEG"), (500, 500)).size == (96, 64)
    assert decode_image(encode(QUARTERS, "PNG"), (12, 8)).size == (96, 64)


def test_decode_image_scales_sixteen_bits_by_their_full_range() -> None:
    gray = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        assert np.asarray(decode_image(encode(gray, kind)))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_decode_image_makes_a_transparent_sixteen_bit_gray_white() -> None:
    data = encode(np.array([[0, 1000]], np.uint16), "PNG", transparency=1000)
    assert np.asarray(decode_image(data))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 128), (127, 127, 127)),
        ("LA", (90, 255), (90, 90, 90)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (0, 0, 255, 51), (204, 204, 255)),
    ],
)
def test_decode_image_lays_gray_and_alpha_on_white(mode: str, color: Any, expected: tuple[int, int, int]) -> None:
    picture = decode_image(encode(Image.new(mode, (4, 3), color), "PNG"))
    assert picture.mode == "RGB"
    assert picture.getpixel((2, 1)) == expected


def test_decode_image_gives_palettes_their_colors_and_makes_transparency_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 99])
    image.putdata([0, 1, 2])
    assert np.asarray(decode_image(encode(image, "PNG")))[0].tolist() == [[10, 20, 30], [200, 0, 0], [0, 0, 99]]
    for kind in ("PNG", "GIF"):
        shown = np.asarray(decode_image(encode(image, kind, transparency=1)))[0].tolist()
        assert shown == [[10, 20, 30], [255, 255, 255], [0, 0, 99]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_decode_image_does_not_invert_cmyk(kind: str) -> None:
    """Photoshop and Pillow write CMYK JPEGs inverted and say so in an Adobe marker."""
    data = encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), kind)
    assert (b"Adobe" in data) == (kind == "JPEG")
    red, green, blue = np.asarray(decode_image(data))[16, 16].astype(int)
    assert red > 245
    assert max(green, blue) < 10


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_decode_image_takes_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = decode_image(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert picture.getpixel((8, 8)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
        ("AVIF", "avif"),
        ("HEIF", "heic"),
        ("PPM", "ppm"),
    ],
)
def test_inspect_image_goes_by_content(kind: str, suffix: str) -> None:
    found = inspect_image(encode(photograph(), kind))
    assert (found.width, found.height, found.suffix) == (90, 60, suffix)


def test_decode_image_names_the_extra_that_heic_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photograph(), "HEIF")
    assert np.abs(np.asarray(decode_image(data), float) - np.asarray(photograph())).mean() < 12
    with pytest.raises(DataError, match=r"truncated|damaged"):
        decode_image(data[:200])
    monkeypatch.setattr(decode, "FORMATS", tuple(name for name in decode.FORMATS if name != "HEIF"))
    with pytest.raises(ConfigError, match=r"a HEIC image, which needs the extra heic: uv pip install .*\[heic\]"):
        decode_image(data)


MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"),
)


@pytest.mark.parametrize("kind", decode.SUFFIXES)
@pytest.mark.parametrize("mode", MODES)
def test_decode_image_reads_every_mode_that_pillow_writes_or_says_why_not(kind: str, mode: str) -> None:
    """Numbers without a known range are no colours; everything else that Pillow reads whole is read."""
    picture = photograph().convert("RGBA").convert(mode) if mode in ("La", "RGBa", "LA") else photograph()
    try:
        data = encode(picture.convert("L").convert(mode) if mode in ("I;16", "PA") else picture.convert(mode), kind)
        stored = Image.open(io.BytesIO(data))
        stored.load()
    except (OSError, ValueError, KeyError, SystemError):
        return  # there are no such files
    if stored.mode in ("LAB", "F") or (stored.mode == "I" and kind != decode.PNM):
        with pytest.raises(DataError, match=f"pixels of mode '{stored.mode}' have no known range"):
            decode_image(data)
        return
    assert decode_image(data).size == stored.size
    assert inspect_image(data)[:2] == stored.size


def test_inspect_image_calls_a_jpeg_with_a_second_image_jpg() -> None:
    data = encode(photograph(), "MPO", save_all=True, append_images=[photograph(40, 30)])
    assert inspect_image(data).suffix == "jpg"
    assert decode_image(data).size == (90, 60)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {}),
        ("PPM", {}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inspect_and_decode_image_find_truncation_anywhere(kind: str, options: dict[str, Any]) -> None:
    data = encode(photograph(), kind, **options)
    for length in (3, 12, 20, len(data) // 10, len(data) // 2, len(data) * 9 // 10, len(data) - 5):
        for read in (inspect_image, decode_image):
            with pytest.raises(DataError, match=f"truncated after {length} bytes|not an image"):
                read(data[:length])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_inspect_image_calls_a_file_cut_in_half_truncated(kind: str) -> None:
    data = encode(photograph(), kind)
    with pytest.raises(DataError, match=f"^truncated after {len(data) // 2} bytes"):
        inspect_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (bytes(500), "not an image"),
        (b"<!DOCTYPE html><title>404", r"not an image.*<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1", r"not an image.*version https"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_decode_image_quotes_the_beginning_of_what_is_no_image(data: bytes, reason: str) -> None:
    for read in (inspect_image, decode_image, decode_numbers):
        with pytest.raises(DataError, match=reason):
            read(data)


@pytest.mark.parametrize("side", [15_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decode_image_refuses_more_pixels_than_the_limit(side: int) -> None:
    for read in (inspect_image, decode_image, decode_numbers):
        with pytest.raises(DataError, match=f"{side * side:,} pixels, over the limit of {PIXEL_LIMIT:,}"):
            read(png_header(side, side))


def test_decode_numbers_opens_images_below_the_pixel_limit() -> None:
    """Phones take 200 megapixels; Pillow alone would stop at 179."""
    with pytest.raises(DataError, match=r"truncated|damaged"):
        decode_numbers(png_header(14_100, 14_100))


def test_inspect_image_refuses_numbers_without_a_range() -> None:
    for kind in (np.float32, np.int32):
        with pytest.raises(DataError, match="no known range; save as grey or RGB"):
            inspect_image(encode(np.ones((4, 4), kind), "TIFF"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_decode_image_ignores_damaged_exif() -> None:
    data = encode(QUARTERS, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff rubbish")
    assert inspect_image(data).width == 96
    assert decode_image(data).size == (96, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
@pytest.mark.filterwarnings("ignore")
def test_decode_image_raises_nothing_but_data_error_on_damage(kind: str) -> None:
    whole = encode(photograph(), kind)
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            damaged[place] = rng.integers(0, 256)
        for read in (inspect_image, decode_image, decode_numbers):
            with contextlib.suppress(DataError):
                read(bytes(damaged))


def test_decode_image_gives_the_same_in_threads() -> None:
    files = [encode(photograph(60 + i, 50), kind) for i in range(8) for kind in ("JPEG", "PNG", "WEBP")]
    with ThreadPoolExecutor(8) as pool:
        in_threads = list(pool.map(lambda data: decode_image(data).tobytes(), files * 3))
    assert in_threads == [decode_image(data).tobytes() for data in files] * 3
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_decode_numbers_gives_numbers_as_stored() -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.putdata([2, 0, 1])
    assert decode_numbers(encode(palette, "PNG")).tolist() == [[2, 0, 1]]
    for numbers in (np.array([[7, 255]], np.uint8), np.array([[7, 40000]], np.uint16)):
        for kind in ("PNG", "TIFF"):
            found = decode_numbers(encode(numbers, kind))
            assert found.dtype == numbers.dtype
            assert np.array_equal(found, numbers)
    assert decode_numbers(encode(np.array([[0.5, 2.25]], np.float32), "TIFF")).tolist() == [[0.5, 2.25]]
    assert decode_numbers(encode(Image.new("1", (2, 1), 1), "PNG")).tolist() == [[1, 1]]


@pytest.mark.parametrize("bits", [2, 4])
def test_decode_numbers_gives_gray_levels_of_few_bits_as_stored(bits: int) -> None:
    """Pillow spreads them over 0 to 255."""
    stored = [[3, 0, 1, 2], [2, 2, 0, 3]]
    rows = [b"\0" + int("".join(f"{n:0{bits}b}" for n in row), 2).to_bytes(bits // 2, "big") for row in stored]
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"".join(rows))))
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*chunks, (b"IEND", b""))
    ]
    assert decode_numbers(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).tolist() == stored


def test_decode_numbers_refuses_inverted_tiffs() -> None:
    out = io.BytesIO()
    Image.new("L", (2, 1), 7).save(out, "TIFF", tiffinfo={262: 0})
    with pytest.raises(DataError, match="stored inverted"):
        decode_numbers(out.getvalue())


def test_decode_numbers_turns_them_upright() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    assert decode_numbers(encode(np.array([[1, 2]], np.uint8), "PNG", exif=exif)).tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode(Image.new("L", (8, 8)), "JPEG"), "JPEG changes the numbers"),
        (encode(Image.new("RGB", (8, 8), (7, 7, 8)), "PNG"), "'RGB' are colours, not numbers"),
        (encode(Image.new("CMYK", (8, 8)), "TIFF"), "'CMYK' are colours, not numbers"),
    ],
)
def test_decode_numbers_refuses_colors_and_jpegs(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_numbers(data)
