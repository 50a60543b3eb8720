"""Masks as people have them: in colours, in grey with a threshold, with ids such as 0 and 255."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import ConfigError, DataError
from pipeline.sources import masks

ROAD, SKY, VOID = [128, 64, 128], [70, 130, 180], [0, 0, 0]
PIXELS = np.array([[ROAD, SKY, VOID], [SKY, SKY, ROAD]], np.uint8)
PLACES = [[1, 0, 65535], [0, 0, 1]]
GRAY = np.array([[0, 127, 128], [255, 129, 1]], np.uint8)


def classes_of(root: Path, picture: Image.Image, suffix: str = "png", **options: Any) -> list[list[int]]:
    """Return the class of every pixel of a mask, read with these keys."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    Image.new("RGB", picture.size).save(root / "images/a.jpg")
    picture.save(root / f"masks/a.{suffix}")
    (record,) = open_source(root, **options).records()
    found: list[list[int]] = record.truth(picture.size).values["segmentation"]["classes"].tolist()
    return found


def open_source(root: Path, **options: Any) -> masks.Source:
    config = masks.Config.model_validate({"path": str(root), **options})
    return masks.Source(masks.Config.model_validate(config.model_dump(mode="json")))  # as a plan hands it on


COLORS = {"road": ROAD, "sky": SKY}


@pytest.mark.parametrize(
    ("colors", "ignore"),
    [
        (COLORS, [VOID]),
        ({"road": "#804080", "sky": "4682b4"}, ["#000000"]),
        ({"sky": tuple(SKY), "road": "#804080"}, [VOID]),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_masks_source_reads_colors(colors: Any, ignore: Any, suffix: str, tmp_path: Path) -> None:
    assert classes_of(tmp_path, Image.fromarray(PIXELS), suffix, colors=colors, ignore=ignore) == PLACES
    space = open_source(tmp_path, colors=colors).spaces()["segmentation"]
    assert space.classes == ("sky", "road"), "in the order of their colours as numbers, however the recipe lists them"


def test_masks_source_reads_colors_of_palettes_and_beside_transparency(tmp_path: Path) -> None:
    options: dict[str, Any] = {"colors": {**COLORS, "void": VOID}}
    expected = [[2, 1, 0], [1, 1, 2]]
    assert classes_of(tmp_path, Image.fromarray(PIXELS).quantize(3), **options) == expected
    clear = Image.fromarray(np.dstack([PIXELS, np.full((2, 3), 9, np.uint8)]))
    assert classes_of(tmp_path, clear, **options) == expected


def test_masks_source_names_colors_that_are_not_listed(tmp_path: Path) -> None:
    reason = r"^mask masks/a.png: colour \[0, 0, 0\], \[70, 130, 180\] is not among the classes; .* `colors` or in"
    with pytest.raises(DataError, match=reason):
        classes_of(tmp_path, Image.fromarray(PIXELS), colors={"road": ROAD})
    (tmp_path / "masks/a.png").unlink()
    with pytest.raises(DataError, match="JPEG changes the numbers"):
        classes_of(tmp_path, Image.fromarray(PIXELS), "jpg", colors=COLORS)
    with pytest.raises(ConfigError, match=r"colors: 'road' and 'street' have the same colour, \[128, 64, 128\]"):
        open_source(tmp_path, colors={"road": ROAD, "street": "#804080"})


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_masks_source_reads_two_values_by_their_names(mode: str, tmp_path: Path) -> None:
    two = Image.fromarray(np.where(GRAY >= 128, 255, 0).astype(np.uint8)).convert(mode)
    assert classes_of(tmp_path, two, classes={0: "background", 255: "cell"}) == [[0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(("threshold", "expected"), [(128, [[0, 0, 1], [1, 1, 0]]), (1, [[0, 1, 1], [1, 1, 1]])])
def test_masks_source_divides_gray_at_threshold(threshold: int, expected: list[list[int]], tmp_path: Path) -> None:
    options: dict[str, Any] = {"classes": ["background", "cell"], "threshold": threshold}
    assert classes_of(tmp_path, Image.fromarray(GRAY), **options) == expected
    assert classes_of(tmp_path, Image.fromarray(GRAY).convert("RGB"), **options) == expected
    assert open_source(tmp_path, **options).spaces()["segmentation"].classes == ("background", "cell")
    wide = Image.fromarray(GRAY.astype(np.uint16) * 100)
    assert classes_of(tmp_path, wide, **options | {"threshold": threshold * 100}) == expected


def test_masks_source_divides_jpegs_at_threshold(tmp_path: Path) -> None:
    blocks = np.repeat(np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 16, 0), 16, 1)
    found = classes_of(tmp_path, Image.fromarray(blocks), "jpg", classes=["background", "cell"], threshold=128)
    assert found == (blocks // 255).tolist()


def test_masks_config_refuses_keys_that_exclude_each_other(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    with pytest.raises(ValidationError, match="colors states the classes already"):
        open_source(tmp_path, colors=COLORS, classes=["a"])
    with pytest.raises(ValidationError, match="one of two classes"):
        open_source(tmp_path, classes=["a", "b"], threshold=3, ignore=[0])
    with pytest.raises(ValidationError, match="ignore: 0 is not a colour"):
        open_source(tmp_path, colors=COLORS, ignore=[0])
    with pytest.raises(ValidationError, match=r"ignore: \(0, 0, 0\) is not an id"):
        open_source(tmp_path, classes=["a"], ignore=[VOID])
    with pytest.raises(ValidationError, match="colors"):
        open_source(tmp_path, colors={"road": "#12345"})
    for classes in (["a"], ["a", "b", "c"], {0: "a", 255: "b"}):
        with pytest.raises(ConfigError, match=r"threshold: needs two `classes`, as \[background, cell\]"):
            open_source(tmp_path, classes=classes, threshold=3)
    with pytest.raises(DataError, match="differ only by case"):
        open_source(tmp_path, colors={"road": ROAD, "Road": SKY})
