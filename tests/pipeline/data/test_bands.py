"""Images of any number of channels: decoded without loss, augmented alone, normalised by their own statistics."""

from __future__ import annotations

import io
import struct
import sys
from typing import Any

import numpy as np
import pytest
import tifffile
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import bands
from pipeline.data.augment import AugmentParams, sample_params, seeded_generator, transform_image
from pipeline.data.bands import decode_bands, decode_picture, decode_pixels, inspect_pixels
from pipeline.errors import DataError
from pipeline.models.backbone import Backbone
from pipeline.models.timm_models import create_timm_model, statistics
from pipeline.models.weight_loading import adapt_weights
from pipeline.recipe.augment import AugmentConfig

RAMP = np.arange(4 * 6 * 5).reshape(4, 6, 5)


def tiff(numbers: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, numbers, **{"photometric": "minisblack", "planarconfig": "contig", **options})
    return file.getvalue()


def tiff_of_tiles(side: int) -> bytes:
    """Return a TIFF of 5 bands that states tiles of another side than its own."""
    data = tiff(RAMP.astype(np.uint8), tile=(16, 16))
    for tag in (322, 323):  # width and height of tiles
        data = data.replace(struct.pack("<HHII", tag, 4, 1, 16), struct.pack("<HHII", tag, 4, 1, side))
    return data


def npy(numbers: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, numbers)
    return file.getvalue()


def png(numbers: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(numbers).save(file, "PNG")
    return file.getvalue()


HUGE_TILES = tiff_of_tiles(65520)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("encode", [npy, tiff])
def test_decode_bands_keeps_numbers(encode: Any, dtype: Any) -> None:
    numbers = (RAMP * (500 if dtype == np.uint16 else 1)).astype(dtype)
    found = decode_bands(encode(numbers), 5)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, numbers)
    assert inspect_pixels(encode(numbers), 5) == (6, 4, "npy" if encode is npy else "tif")


@pytest.mark.filterwarnings("error")
def test_decode_bands_keeps_numbers_of_few_bits_and_what_is_not_there() -> None:
    numbers = RAMP.astype(np.float16)
    data = tiff(numbers, extratags=[(42113, "s", 0, "-9999", True)])
    for each in (npy(numbers), data):
        np.testing.assert_array_equal(decode_bands(each, 5), numbers)


@pytest.mark.parametrize("options", [{"compression": "zlib"}, {"compression": "lzw", "predictor": True}], ids=str)
def test_decode_bands_reads_compressed_tiff(options: dict[str, Any]) -> None:
    pytest.importorskip("imagecodecs")
    np.testing.assert_array_equal(decode_bands(tiff(RAMP.astype(np.uint16), **options), 5), RAMP)


@pytest.mark.parametrize("planar", ["separate", None], ids=["planes", "pages"])
def test_decode_bands_reads_bands_one_after_the_other(planar: str | None) -> None:
    first = np.moveaxis(RAMP, -1, 0).astype(np.uint16)
    np.testing.assert_array_equal(decode_bands(tiff(first, planarconfig=planar), 5), RAMP)


@pytest.mark.parametrize("shape", [(1, 32, 5), (3, 40, 2), (32, 1, 4), (1, 1, 5), (3, 6, 4)], ids=str)
def test_decode_bands_of_few_rows_has_the_channels_that_are_stated(shape: tuple[int, int, int]) -> None:
    numbers = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    for data in (npy(numbers), tiff(numbers)):
        np.testing.assert_array_equal(decode_bands(data, shape[2]), numbers)


@pytest.mark.parametrize("encode", [npy, tiff, png])
def test_decode_bands_reads_one_channel(encode: Any) -> None:
    gray = RAMP[..., 0].astype(np.uint16)
    options = {"planarconfig": None} if encode is tiff else {}
    np.testing.assert_array_equal(decode_bands(encode(gray, **options), 1), gray[..., None])


@pytest.mark.parametrize(
    ("data", "channels", "says"),
    [
        (tiff(RAMP.astype(np.uint8)), 4, "has 5 channels, not 4: make such images a set with `channels: 5`"),
        (tiff(RAMP.astype(np.uint8)[..., :3]), 5, "has 3 channels, not 5: make such images a set of pictures"),
        (npy(np.zeros((250, 6, 5)).T), 5, r"has the shape \(5, 6, 250\), not \(height, width, 5\)"),
        (
            npy(np.where(RAMP % 6 == 1, np.nan, RAMP)),
            5,
            "holds 20 .*, nan, in channel 2, row 1, column 1",
        ),
        (npy(np.where(RAMP == 44, -3.4e38, RAMP)), 5, r"holds 1 .*, -3.4e\+38, in channel 5, row 2, column 3"),
        (npy(np.where(RAMP == 44, 1e200, RAMP)), 5, r"holds 1 .*, 1e\+200, in channel 5, row 2, column 3"),
        *[
            (tiff(RAMP.astype(dtype), extratags=[(42113, "s", 0, "44", True)]), 5, r"holds 1 .*44, .*\(GDAL_NODATA\)")
            for dtype in (np.uint8, np.float32)
        ],
        (tiff(RAMP.astype(np.uint8), extratags=[(274, "H", 1, 6, True)]), 5, "is stored turned .orientation 6"),
        (tiff(RAMP[..., 0].astype(np.uint8), photometric="miniswhite", planarconfig=None), 1, "inverted .WhiteIsZero"),
        (tiff(np.moveaxis(RAMP, -1, 0).astype(np.uint8), planarconfig=None), 1, "has 5 channels, not 1"),
        (HUGE_TILES, 5, "a tile or strip of 21,464,352,000 numbers, over the limit"),
        (tiff(RAMP.astype(np.uint8))[:-40], 5, "damaged, or no TIFF|truncated"),
        (npy(RAMP)[:-8], 5, "truncated"),
        (png(np.zeros((4, 6, 3), np.uint8)), 5, "is a picture, and no image of 5 channels"),
        *[(b"", channels, "^empty file$") for channels in (1, 5)],
        (b"text", 5, "^begins with b'text', and no image of 5 channels: these are TIFF files or"),
    ],
    ids=[
        *(
            "channels",
            "pictures",
            "bands first",
            "nan",
            "large",
            "largest",
            "unknown",
            "unknown float",
            "turned",
            "inverted",
            "pages",
            "huge tiles",
        ),
        *("short tiff", "short npy", "picture", "empty", "no bytes", "text"),
    ],
)
def test_decode_bands_refuses(data: bytes, channels: int, says: str) -> None:
    with pytest.raises(DataError, match=says):
        decode_bands(data, channels)


def test_decode_bands_reads_one_band_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    gray = tiff(RAMP[..., 0].astype(np.uint16), planarconfig=None)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    np.testing.assert_array_equal(decode_bands(gray, 1), RAMP[..., :1])


@pytest.mark.parametrize("rows", [1, 2**32 - 1])
def test_decode_bands_reads_strips_of_any_number_of_rows(rows: int) -> None:
    data = tiff(RAMP.astype(np.uint8), rowsperstrip=4)
    changed = data.replace(struct.pack("<HHII", 278, 4, 1, 4), struct.pack("<HHII", 278, 4, 1, rows))
    np.testing.assert_array_equal(decode_bands(changed if rows > 4 else data, 5), RAMP)


def test_decode_bands_has_one_limit_for_arrays_and_tiff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "MOST_NUMBERS", RAMP.size - 1)
    for data in (npy(RAMP), tiff(RAMP.astype(np.uint8))):
        with pytest.raises(DataError, match="of 120 numbers, over the limit of 119"):
            decode_bands(data, 5)


@pytest.mark.parametrize("data", [tiff(RAMP.astype(np.uint16)), npy(RAMP)], ids=["tiff", "npy"])
def test_inspect_pixels_of_pictures_says_how_bands_are_read(data: bytes) -> None:
    with pytest.raises(DataError, match="bands that are no picture are read in a set that states how many"):
        inspect_pixels(data, 3)


def test_decode_pixels_of_three_channels_is_a_picture() -> None:
    found = decode_pixels(png(np.full((4, 6, 3), 9, np.uint8)), 3)
    assert isinstance(found, Image.Image)
    assert found.getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_decode_picture_stretches_the_first_three_channels_or_one(channels: int) -> None:
    ramp = np.linspace(-3, 900, 24 * channels).reshape(4, 6, channels)
    ramp[..., 2:] *= -1
    found = np.asarray(decode_picture(npy(ramp if channels > 1 else ramp[..., 0])))
    assert (found.shape, found.min(), found.max()) == ((4, 6, 3), 0, 255)
    assert (found[..., 0] == found[..., 2]).all() == (channels < 3)


def test_decode_picture_of_four_bands_takes_none_for_transparency() -> None:
    numbers = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    data = tiff(numbers, photometric="rgb", extrasamples=["unassalpha"])
    shown, other = (np.asarray(decode_picture(data, channels=4)), np.asarray(decode_picture(npy(numbers))))
    np.testing.assert_array_equal(shown, other)


def test_transform_image_moves_bands_as_it_does_colors() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    params = AugmentParams((0.1, 0.2, 0.8, 1.3), flip=True)
    one = transform_image(Image.fromarray(rgb), params, 32)
    other = transform_image(rgb.astype(np.float32), params, 32)
    covered = 23  # of 32 rows; the rest is padding
    np.testing.assert_allclose(other[:covered], one[:covered], atol=1)
    assert other.dtype == np.float32


def test_transform_image_pads_bands_with_their_mean() -> None:
    bands = np.full((8, 8, 5), 7.5, np.float32)
    assert (transform_image(bands, AugmentParams((0, 0, 2, 1)), 16) == 7.5).all()


@pytest.mark.parametrize("offset", [0, 300, -5000])
def test_transform_image_changes_the_tone_of_bands_by_their_deviation(offset: float) -> None:
    bands = np.full((8, 8, 2), offset, np.float32)
    bands[:4] += 10
    made = transform_image(bands, AugmentParams(tone=(1.2, 0.5)), 8)
    np.testing.assert_allclose(np.unique(made), [offset + 3.5, offset + 8.5], rtol=1e-5)


def test_sample_params_draws_one_tone_for_any_channels() -> None:
    config = AugmentConfig(brightness=0.4, contrast=0.4)
    params = sample_params(config, seeded_generator(3), (1.0, 1.0), 32)
    assert params.tone is not None
    assert all(0.6 <= each <= 1.4 for each in params.tone)
    plain = AugmentConfig(brightness=0, contrast=0, saturation=0)
    assert sample_params(plain, seeded_generator(3), (1.0, 1.0), 32).tone is None


@pytest.mark.parametrize("channels", [1, 5])
def test_backbone_normalizes_images_of_any_channels(channels: int) -> None:
    mean, std = tuple(100.0 * (n + 1) for n in range(channels)), (4.0,) * channels
    backbone = Backbone("test_resnet", 32, (mean, std))
    images = torch.tensor(mean).view(1, -1, 1, 1).repeat(2, 1, 32, 32) + 2
    torch.testing.assert_close(backbone.normalize(images), torch.full_like(images, 0.5))
    assert backbone(images).shape == (2, backbone.width)


@pytest.mark.parametrize("channels", [1, 4, 5])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_adapt_weights_gives_the_first_convolution_the_model_s_channels(name: str, channels: int) -> None:
    published: Any = timm.create_model(name, num_classes=0)
    adapted = adapt_weights(create_timm_model(name, 32, channels=channels), published.state_dict(), "published")
    key = f"{published.pretrained_cfg['first_conv']}.weight"
    expected = timm.models.adapt_input_conv(channels, published.state_dict()[key])
    torch.testing.assert_close(adapted[key], expected)
    assert statistics(name, channels) == ((0.0,) * channels, (1.0,) * channels)
