"""Decode image files to pixels, in one way for all, so that every teacher and the student see the same image.

Files that differ only in how they store an image come out alike: upright by their EXIF orientation, 8 bits per channel,
RGB, transparency laid on white, the first frame of an animation. Colour profiles are not applied, as in the pipelines
that published backbones were trained with.

All functions are pure and thread-safe. Pillow's process-wide settings are set once, below; LOAD_TRUNCATED_IMAGES, with
which Pillow invents the missing part of a file, stays off. No torch.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from pipeline.data.tiff import SIGNED, TIFF, decode_tiff, needs_tifffile, read_page
from pipeline.errors import ConfigError, DataError, install_command
from pipeline.storage.shortage import raise_shortage

SPREAD = {"L;2": 85, "L;4": 17}
"""The factor by which Pillow spreads gray levels of 2 or 4 bits over 0 to 255."""
PIXEL_LIMIT = 200_000_000
"""Images of more pixels are refused. Phones go up to 200 megapixels; as RGB that is 600 MB."""
MOST_NUMBERS = PIXEL_LIMIT * 3
"""Numbers of an image or array of bands; those of more are refused."""
PNM = "PPM"
"""Pillow's name for PBM, PGM and PPM. Of mode I they hold grey values of 16 bits; in other formats, nobody knows."""
SUFFIXES = {
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG with further images behind it: other readers see the first
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "HEIF": "heic",
    PNM: "ppm",
}
# By EXIF orientation.
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = (5, 6, 7, 8)
SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
COLOR_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", *SIXTEEN_BIT_MODES)
NUMBER_MODES = ("1", "L", "P", "I", "F", *SIXTEEN_BIT_MODES)
GRAY_AS_COLOR = ("RGB", "RGBA", "LA")
"""Modes in which programs save grey that has no more than one channel's worth of numbers."""
MAGIC_NUMBERS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM", *TIFF),
    *(b"P4\n", b"P5\n", b"P6\n"),
)
HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")

Image.init()
with contextlib.suppress(ImportError):  # an extra
    import pillow_heif

    pillow_heif.register_heif_opener()
# Other formats are not opened: some of them start programs (PostScript), others have no magic number.
FORMATS = tuple(name for name in SUFFIXES if name in Image.OPEN)
# Pillow's own guard warns at this many pixels and raises at twice as many; ours refuses all of them.
Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT


class Inspection(NamedTuple):
    """Size of the upright image in a file, in pixels, and the suffix of the file's format ("jpg", "png")."""

    width: int
    height: int
    suffix: str


def inspect_image(data: bytes) -> Inspection:
    """Read all of an image file and return its size and format.

    A JPEG is read at an eighth of its size without colours, which checks every byte at a fraction of the cost. Raises
    DataError, with the reason, on what `decode_image` could not use: empty, truncated, damaged, too large, no image.
    """
    image = _open(data)
    _check_mode(image, COLOR_MODES)
    width, height = image.size
    drafted = image.draft("L", (1, 1)) is not None
    _load(image, data)
    if not drafted:  # loading a TIFF turns it upright
        width, height = image.size
    if _orientation(image) in SWAPS_SIDES:
        width, height = height, width
    return Inspection(width, height, SUFFIXES[str(image.format)])


def decode_image(data: bytes, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image file to an upright RGB image of 8 bits per channel. Raises DataError with the reason.

    Args:
        at_least: (width, height) of the upright image in pixels, both positive. A JPEG may then come out at 1/2, 1/4 or
            1/8 of its size, the smallest that is not smaller than this in either direction: averaged, not subsampled,
            in a fraction of the time. Other formats come out at their own size.
    """
    image = _open(data)
    _check_mode(image, COLOR_MODES)
    if at_least is not None and image.format in ("JPEG", "MPO"):
        image.draft(None, at_least[::-1] if _orientation(image) in SWAPS_SIDES else at_least)
    _load(image, data)
    return _upright(image, _rgb(image))


def rgb_image(image: Image.Image) -> Image.Image:
    """Return an image that Pillow has opened or made as `decode_image` returns that of a file.

    Raises DataError with the reason.
    """
    if image.width * image.height > PIXEL_LIMIT:
        raise DataError(_too_large(str(image.width * image.height)))
    if image.width * image.height == 0:
        raise DataError(f"an image without pixels ({image.width}x{image.height})")
    _check_mode(image, COLOR_MODES)
    with _explain_errors(b""):
        image.load()
    return _upright(image, _rgb(image))


def decode_numbers(data: bytes) -> NDArray[Any]:
    """Decode an image file to the one number that each pixel holds, (H, W), upright: class ids, millimetres.

    As `decode_raster`. Raises DataError on a TIFF of several bands or pages as well.
    """
    numbers = decode_raster(data)
    if numbers.ndim != 2:
        raise DataError(f"holds {numbers.shape[2]} bands or pages; save the one that is meant by itself")
    return numbers


def decode_raster(data: bytes) -> NDArray[Any]:
    """Decode an image file to the numbers it holds, (H, W), or (H, W, C) of a TIFF of bands or pages, upright.

    All types of numbers of TIFF are as stored, of some of which int16 comes as int32; of others uint8 or uint16 (a
    palette's indices, not its colours). A two-colour image gives 0 and 1; grey that is saved as RGB of 8 bits gives
    one of its equal channels. Raises DataError, with the reason, if it holds colours or was stored with loss or
    inverted; ConfigError if the package is missing that reads what Pillow does not.
    """
    if needs_tifffile(data):
        return decode_tiff(data, MOST_NUMBERS)
    image = _open_lossless(data)
    stored = _stored_mode(image)
    if image.mode in GRAY_AS_COLOR and ";16" not in stored:
        return _gray_channel(image, data)
    _check_mode(image, NUMBER_MODES)
    if re.fullmatch(r"L;\d?I.*", stored):
        raise DataError("its numbers are stored inverted (WhiteIsZero); save them as PNG")
    _load(image, data)
    numbers = np.asarray(_upright(image, image))
    if numbers.dtype == np.bool_:
        return numbers.astype(np.uint8)
    if stored in SPREAD:
        return numbers // np.uint8(SPREAD[stored])
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)


def decode_colors(data: bytes) -> NDArray[np.uint8]:
    """Decode an image file to the colours it holds, (H, W, 3), upright: those that stand for classes or vectors.

    A palette gives its colours, and transparency changes none. Raises DataError, with the reason, if it was stored with
    loss.
    """
    image = _open_lossless(data)
    _check_mode(image, COLOR_MODES)
    _load(image, data)
    plain = _eight_bits(image) if _has_16_bits(image) else image
    return np.array(_upright(image, plain.convert("RGB")))


def decode_gray(data: bytes) -> NDArray[Any]:
    """Decode an image file, also one stored with loss, to its brightness (H, W), upright.

    uint8, of colours and palettes too; of 16 and 32 bits the numbers as stored. Raises DataError with the reason.
    """
    if needs_tifffile(data):
        return decode_numbers(data)
    image = _open(data)
    if _has_16_bits(image) or image.mode in ("I", "F"):
        return decode_numbers(data)
    _check_mode(image, COLOR_MODES)
    _load(image, data)
    return np.array(_upright(image, image.convert("RGB").convert("L")))


def _open_lossless(data: bytes) -> Image.Image:
    """Open an image whose numbers are those that were saved. Raises DataError if they are not."""
    image = _open(data)
    if image.format in ("JPEG", "MPO", "HEIF"):
        kind = "HEIC" if image.format == "HEIF" else "JPEG"
        raise DataError(f"{kind} changes the numbers stored in it; save them as PNG")
    if image.format == PNM:
        raise DataError("the numbers of a PGM or PBM file are read scaled to their largest; save them as PNG")
    page = read_page(data)
    if page.pages > 1 if page else getattr(image, "is_animated", False):
        raise DataError("holds several pages or frames; save the one that is meant by itself")
    return image


def _gray_channel(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """Return one of the channels (H, W) of an image in colours. Raises DataError unless they are equal."""
    _load(image, data)
    colors = np.array(_upright(image, image.convert("RGB")))
    if (colors == colors[..., :1]).all():
        return np.ascontiguousarray(colors[..., 0])
    raise DataError(f"pixels of mode {image.mode!r} are colours, not numbers; save them with one channel")


def _stored_mode(image: Image.Image) -> str:
    """Return in which of Pillow's raw modes an image that is not loaded yet is stored, "" if that is not said."""
    for tile in image.tile if isinstance(image, ImageFile.ImageFile) else ():
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        return str(arguments[0])
    return ""


def _open(data: bytes) -> Image.Image:
    """Open an image: its header is read, and its size is within the limit."""
    if not data:
        raise DataError("empty file")
    _check_end(data)
    with _explain_errors(data):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    pixels = image.width * image.height
    if pixels > PIXEL_LIMIT:
        raise DataError(_too_large(str(pixels)))
    if pixels == 0:
        raise DataError(f"an image without pixels ({image.width}x{image.height})")
    return image


def _load(image: Image.Image, data: bytes) -> None:
    with _explain_errors(data):
        image.load()


@contextlib.contextmanager
def _explain_errors(data: bytes) -> Iterator[None]:
    """Raise what Pillow raises on `data` as a DataError that names the reason."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise DataError(_unreadable(data)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(re.findall(r"\d+", str(error))[0])) from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise_shortage(error, "decoding an image")
        truncated = any(sign in str(error).lower() for sign in ("truncated", "reached eof"))
        raise DataError(
            f"truncated after {len(data)} bytes" if truncated else f"damaged image data ({error})"
        ) from error


def _check_end(data: bytes) -> None:
    """Raise DataError on truncation that Pillow misses (a PNG without its end) or takes for no image (a short WebP)."""
    png = data.startswith(b"\x89PNG\r\n\x1a\n") and data.rfind(b"IEND") < 0
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little")
    if png or webp:
        raise DataError(f"truncated after {len(data)} bytes")


def _check_mode(image: Image.Image, modes: tuple[str, ...]) -> None:
    if image.mode in modes or _has_16_bits(image):
        if modes is COLOR_MODES and SIGNED in getattr(image, "tag_v2", {}).get(ExifTags.Base.SampleFormat, ()):
            raise DataError("pixels of signed numbers have no known range; save as grey or RGB of 8 or 16 bits")
        return
    if modes is NUMBER_MODES:
        raise DataError(f"pixels of mode {image.mode!r} are colours, not numbers; save them with one channel")
    raise DataError(f"pixels of mode {image.mode!r} have no known range; save as grey or RGB of 8 or 16 bits")


def is_picture(data: bytes) -> bool:
    """Return True for what begins like a file of one of the formats that Pillow reads."""
    return data.startswith(MAGIC_NUMBERS) or data[4:12] in (b"ftypavif", *HEIF_BRANDS)


def _unreadable(data: bytes) -> str:
    """Return why a file can't be opened. Raises ConfigError if only for a package that is missing."""
    if data[4:12] in HEIF_BRANDS and "HEIF" not in FORMATS:
        raise ConfigError(f"a HEIC image, which needs the extra heic: {install_command('heic')}")
    if (page := read_page(data)) and not page.is_plain:
        return f"{page.describe()}, which is no picture"
    if is_picture(data):
        return f"truncated after {len(data)} bytes or damaged: it begins like an image but can't be opened"
    return f"not an image (it begins with {data[:16]!r})"


def _too_large(pixels: str) -> str:
    return f"{int(pixels):,} pixels, over the limit of {PIXEL_LIMIT:,}"


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or its block is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises nearly anything; but damaged EXIF is no reason to lose the image
        return 1
    return value if value in TRANSPOSES else 1


def _upright(image: Image.Image, converted: Image.Image) -> Image.Image:
    """Return `converted` turned upright by the EXIF orientation of `image`."""
    orientation = _orientation(image)
    if orientation == 1:
        return converted
    turned = converted.transpose(TRANSPOSES[orientation])
    turned.info = {}  # without EXIF, or the next reader of it turns the image again
    return turned


def _rgb(image: Image.Image) -> Image.Image:
    if _has_16_bits(image):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _has_16_bits(image: Image.Image) -> bool:
    """Return True for grey of 16 bits."""
    return image.mode in SIXTEEN_BIT_MODES or (image.mode == "I" and image.format == PNM)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert gray of 16 bits to 8, 65535 to 255: Pillow's own conversion clips at 255."""
    gray = np.asarray(image)
    small = ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        small[gray == transparent] = 255
    return Image.fromarray(small)
