"""Image files to pixels: the one way in, so that every teacher and the student see the same picture.

Kinds of file that differ only in how they are stored come out alike: upright by their EXIF orientation, 8 bits per
channel, RGB, transparency laid on white, the first frame of an animation. Colour profiles are not applied, as in the
pipelines that published backbones were trained with.

All functions are pure and safe to call from threads: Pillow's process-wide settings are touched once, below, and the
setting that makes Pillow invent the missing part of a truncated file is left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import DataError

PIXEL_LIMIT = 200_000_000
"""Images of more pixels are refused. Phones go up to 200 megapixels; as RGB that is 600 MB."""

SUFFIXES = {
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG with further pictures behind it: readers that don't know them see the first
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", *SIXTEEN_BITS)
NUMBERS = ("1", "L", "P", "I", "F", *SIXTEEN_BITS)
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")

Image.init()
# Other formats stay closed: some of them start programs (PostScript) or have no mark to be known by.
FORMATS = tuple(name for name in SUFFIXES if name in Image.OPEN)
# Pillow's own guard warns at this many pixels and raises at twice as many; ours refuses all of them.
Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a file is: the size of its upright image in pixels, and the suffix its content asks for ("jpg", "png")."""

    width: int
    height: int
    suffix: str


def inspect(data: bytes) -> Inspection:
    """Read the whole of `data`, an image file, and say what it is.

    A JPEG is read at an eighth of its size without colours, which passes over every byte at a fraction of the cost.
    Raises DataError, with the reason, on what `decode` could not use: empty, truncated, damaged, too large, no image.
    """
    image = _open(data)
    _check_mode(image, COLOURS)
    width, height = image.size
    drafted = image.draft("L", (1, 1)) is not None
    _load(image, data)
    if not drafted:  # loading a TIFF turns it upright
        width, height = image.size
    if _orientation(image) in SIDEWAYS:
        width, height = height, width
    return Inspection(width, height, SUFFIXES[str(image.format)])


def decode(data: bytes, at_least: tuple[int, int] | None = None) -> Image.Image:
    """An image file -> the upright picture, mode RGB, 8 bits per channel.

    `at_least` = (width, height) in pixels, both positive, of the upright picture: a JPEG may then come out at 1/2, 1/4
    or 1/8 of its size, whichever is the smallest that is not smaller than that in either direction. Such a picture is
    averaged, not subsampled, and costs a fraction of the time. Other formats come out at their own size.
    Raises DataError, with the reason, on what can't be used.
    """
    image = _open(data)
    _check_mode(image, COLOURS)
    if at_least is not None and image.format in ("JPEG", "MPO"):
        image.draft(None, at_least[::-1] if _orientation(image) in SIDEWAYS else at_least)
    _load(image, data)
    return _upright(image, _rgb(image))


def decode_numbers(data: bytes) -> NDArray[Any]:
    """A one-channel image file -> the numbers it holds, (H, W), upright: class ids, millimetres.

    uint8 or uint16 as stored (a palette's indices, not its colours), int32 or float32 for 32-bit TIFF; a two-colour
    image gives 0 and 1. Raises DataError, with the reason, if it holds colours or was stored with loss.
    """
    image = _open(data)
    if image.format in ("JPEG", "MPO"):
        raise DataError("a JPEG changes the numbers stored in it; save them as PNG")
    _check_mode(image, NUMBERS)
    _load(image, data)
    numbers = np.asarray(_upright(image, image))
    if numbers.dtype == np.bool_:
        return numbers.astype(np.uint8)
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)


def _open(data: bytes) -> Image.Image:
    """The image with its header read and its size within the limit."""
    if not data:
        raise DataError("empty file")
    _check_end(data)
    with _explained(data):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    pixels = image.width * image.height
    if pixels > PIXEL_LIMIT:
        raise DataError(_too_large(str(pixels)))
    if pixels == 0:
        raise DataError(f"an image without pixels ({image.width}x{image.height})")
    return image


def _load(image: Image.Image, data: bytes) -> None:
    with _explained(data):
        image.load()


@contextlib.contextmanager
def _explained(data: bytes) -> Iterator[None]:
    """Turn what Pillow raises over `data` into a DataError that a person understands."""
    try:
        yield
    except MemoryError:  # says something of the machine, not of the file
        raise
    except UnidentifiedImageError as error:
        raise DataError(_unknown(data)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(re.findall(r"\d+", str(error))[0])) from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        cut = "truncated" in str(error).lower()
        raise DataError(f"truncated after {len(data)} bytes" if cut else f"damaged image data ({error})") from error


def _check_end(data: bytes) -> None:
    """Find what Pillow misses or mistakes for no image: a PNG without its end, a WebP shorter than it says."""
    png = data.startswith(b"\x89PNG\r\n\x1a\n") and data.rfind(b"IEND") < 0
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little")
    if png or webp:
        raise DataError(f"truncated after {len(data)} bytes")


def _check_mode(image: Image.Image, modes: tuple[str, ...]) -> None:
    if image.mode in modes:
        return
    if modes is NUMBERS:
        raise DataError(f"pixels of mode {image.mode!r} are colours, not numbers; save them with one channel")
    raise DataError(f"pixels of mode {image.mode!r} have no known range; save as grey or RGB of 8 or 16 bits")


def _unknown(data: bytes) -> str:
    if data.startswith(BEGINNINGS) or data[4:12] == b"ftypavif":
        return f"truncated after {len(data)} bytes or damaged: it begins like an image but can't be opened"
    return f"not an image (it begins with {data[:16]!r})"


def _too_large(pixels: str) -> str:
    return f"{int(pixels):,} pixels, over the limit of {PIXEL_LIMIT:,}"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or its block is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in `_explained`; but damaged EXIF is no reason to lose the picture
        return 1
    return value if value in TURNS else 1


def _upright(image: Image.Image, picture: Image.Image) -> Image.Image:
    """`picture` turned as the EXIF of `image` asks."""
    orientation = _orientation(image)
    if orientation == 1:
        return picture
    turned = picture.transpose(TURNS[orientation])
    turned.info = {}  # or whoever looks at the EXIF next turns it again
    return turned


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BITS:
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits -> of 8, 65535 to 255: Pillow's own conversion would cut everything above 255 off."""
    grey = np.asarray(image)
    small = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        small[grey == transparent] = 255
    return Image.fromarray(small)
