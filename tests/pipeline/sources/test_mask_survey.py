"""What masks are, by a look at some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.sources._mask_survey import survey_masks
from pipeline.storage.path import StoragePath, walk

RNG = np.random.default_rng(0)
DISC = np.fromfunction(lambda y, x: (y - 32) ** 2 + (x - 32) ** 2 < 400, (64, 64))
TWO_CLASSES = {"classes": ["class_0", "class_1"], "threshold": 128}


def survey(folder: Path, *pictures: Image.Image | NDArray[Any], suffix: str = "png") -> Any:
    for number, picture in enumerate(pictures):
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(folder / f"{number:03d}.{suffix}")
    return survey_masks(list(walk(StoragePath.of(str(folder)))))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([[0, 255]], {"classes": {0: "class_0", 255: "class_255"}}),
        ([[0, 1]], {"classes": {0: "class_0", 1: "class_1"}}),
        ([[0, 1, 255]], {"classes": {0: "class_0", 1: "class_1"}, "ignore": [255]}),
        ([[7, 11, 26]], {"classes": {7: "class_7", 11: "class_11", 26: "class_26"}}),
        ([list(range(33))], {"classes": {number: f"class_{number}" for number in range(33)}}),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_survey_masks_names_few_ids(numbers: Any, expected: Any, mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.array(numbers, np.uint8))
    if mode == "P":
        image.putpalette([(7 * number) % 256 for number in range(768)])
    assert survey(tmp_path, image.convert(mode)) == expected


def test_survey_masks_looks_at_all_of_a_sample(tmp_path: Path) -> None:
    masks = [np.full((2, 2), number, np.uint8) for number in (4, 9, 4, 2)]
    assert survey(tmp_path, *masks) == {"classes": {2: "class_2", 4: "class_4", 9: "class_9"}}
    wide = np.full((2, 2), 130, np.uint16)
    assert survey(tmp_path, wide) == {"classes": {2: "class_2", 4: "class_4", 9: "class_9", 130: "class_130"}}


def test_survey_masks_lists_colors(tmp_path: Path) -> None:
    colors = np.array([[[128, 64, 128], [0, 0, 0]], [[244, 35, 232], [0, 0, 0]]], np.uint8)
    expected = {"colors": {"class_0": [0, 0, 0], "class_1": [128, 64, 128], "class_2": [244, 35, 232]}}
    assert survey(tmp_path, colors) == expected


def test_survey_masks_finds_two_classes_in_blurred_and_lossy_masks(tmp_path: Path) -> None:
    disc = Image.fromarray((DISC * 255).astype(np.uint8))
    assert survey(tmp_path, disc, suffix="jpg") == TWO_CLASSES
    (tmp_path / "000.jpg").unlink()
    assert survey(tmp_path, disc.filter(ImageFilter.GaussianBlur(1))) == TWO_CLASSES
    assert survey(tmp_path, disc.convert("RGB"), suffix="jpg") == TWO_CLASSES


@pytest.mark.parametrize(
    "picture",
    [
        RNG.integers(0, 255, (64, 64, 3), np.uint8),
        RNG.integers(0, 255, (64, 64), np.uint8) // 2 + 60,
        RNG.integers(0, 65535, (64, 64), np.uint16),
        np.full((4, 4), 1500, np.uint16),
        RNG.random((64, 64), np.float32),
    ],
)
@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_survey_masks_takes_photographs_and_depth_for_none(picture: Any, suffix: str, tmp_path: Path) -> None:
    if suffix == "jpg" and picture.dtype != np.uint8:
        pytest.skip("no JPEG has such numbers")
    many_ids = picture.dtype == np.uint8 and picture.ndim == 2 and suffix == "tif"
    assert (survey(tmp_path, picture, suffix=suffix) is None) == (not many_ids)


def test_survey_masks_reads_what_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "000.png").write_bytes(b"text")
    assert survey_masks([StoragePath.of(str(tmp_path / "nowhere.png"))]) is None
    assert survey_masks([]) is None
    assert survey_masks([StoragePath.of(str(tmp_path / "000.png"))]) is None
