"""`must init` finds images beside masks, depth and normals, and reads them as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest.init import detect_source

TWO = {"classes": {0: "class_0", 255: "class_255"}}


def image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).save(file)


def mask(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 4, 1).repeat(6, 0)).save(file)


def depth(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, np.full((6, 8), 1.5, np.float32))
    else:
        Image.fromarray(np.full((6, 8), 1500, np.uint16)).save(file)


def normals(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), (128, 128, 255), np.uint8)).save(file)


def settings(root: Path) -> dict[str, Any]:
    """Return how `must init` reads a folder, after reading all of its labels."""
    found = detect_source(root)
    records = list(found.source.records())
    assert all(record.truth((8, 6)).values for record in records)
    assert not found.source.problems
    return {key: value for key, value in found.entry.items() if key != "path"}


@pytest.mark.parametrize(
    ("image_name", "mask_name", "expected"),
    [
        ("images/{}.jpg", "masks/{}.png", {}),
        ("images/train/{}.jpg", "masks/train/{}.png", {}),
        ("train/images/{}.jpg", "train/masks/{}.png", {}),
        ("img/{}.jpg", "mask/{}.png", {"images": "img", "masks": "mask"}),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", {"images": "JPEGImages", "masks": "SegmentationClass"}),
        ("train_img/{}.png", "train_gt/{}.png", {"images": "{split}_img", "masks": "{split}_gt"}),
        (
            "train/{}.png",
            "train_labels/{}_L.png",
            {"images": "{split}", "masks": "{split}_labels", "mask_suffix": "_L"},
        ),
        ("images/{}.jpg", "labels/{}.png", {"masks": "labels"}),
        ("images/{}.jpg", "ground_truth/{}.png", {"masks": "ground_truth"}),
        ("images/{}.jpg", "annotations/{}.png", {"masks": "annotations"}),
        ("images/{}.jpg", "segmentations/{}_seg.png", {"masks": "segmentations", "mask_suffix": "_seg"}),
        ("images/{}.jpg", "masks/{}_mask.tif", {"mask_suffix": "_mask"}),
        ("{}.jpg", "{}_mask.png", {"images": ".", "masks": ".", "mask_suffix": "_mask"}),
        ("train/{}.jpg", "train/{}-label.png", {"images": ".", "masks": ".", "mask_suffix": "-label"}),
        ("val/{}.png", "val/{}_seg.png", {"images": ".", "masks": ".", "mask_suffix": "_seg"}),
    ],
)
def test_init_recognises_masks(image_name: str, mask_name: str, expected: dict[str, Any], tmp_path: Path) -> None:
    for stem in ("a", "b_1", "c 2"):
        image(tmp_path / image_name.format(stem))
        mask(tmp_path / mask_name.format(stem))
    assert settings(tmp_path) == {"kind": "masks", **expected, **TWO}


def test_init_takes_classes_from_a_file_of_them(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png")
    (tmp_path / "classes.json").write_text('{"0": "ground", "255": "cell"}')
    assert settings(tmp_path) == {"kind": "masks"}


@pytest.mark.parametrize(
    ("image_name", "depth_name", "expected"),
    [
        ("rgb/{}.jpg", "depth/{}.png", {}),
        ("images/{}.jpg", "depth/{}.npy", {"rgb": "images"}),
        ("rgb/{}.jpg", "depth/{}_depth.npy", {"depth_suffix": "_depth"}),
        ("train/rgb/{}.jpg", "train/depth/{}.png", {}),
        ("{}.jpg", "{}_depth.png", {"rgb": ".", "depth": ".", "depth_suffix": "_depth"}),
    ],
)
def test_init_recognises_depth(image_name: str, depth_name: str, expected: dict[str, Any], tmp_path: Path) -> None:
    for stem in ("a", "b"):
        image(tmp_path / image_name.format(stem))
        depth(tmp_path / depth_name.format(stem))
    assert settings(tmp_path) == {"kind": "depth", **expected}
    (tmp_path / "cameras.json").write_text("{}")
    assert settings(tmp_path) == {"kind": "depth", **expected, "normals": "from_depth"}


def test_init_recognises_normals_and_several_labels(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        image(tmp_path / f"images/{stem}.jpg")
        normals(tmp_path / f"normals/{stem}.png")
    assert settings(tmp_path) == {"kind": "normals"}
    for stem in ("a", "b"):
        depth(tmp_path / f"depth/{stem}.png")
    assert settings(tmp_path) == {"kind": "rasters", "depth": "depth", "normals": "normals"}
    for stem in ("a", "b"):
        mask(tmp_path / f"labels/{stem}_L.png")
    labels = {"masks": "labels", "depth": "depth", "normals": "normals", "mask_suffix": "_L"}
    assert settings(tmp_path) == {"kind": "rasters", **labels, **TWO}


@pytest.mark.parametrize("names", [("images/a.jpg", "labels/a.jpg"), ("a.jpg", "a_mask.jpg"), ("x/mask.jpg", "a.jpg")])
def test_init_takes_no_photographs_for_masks(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        image(tmp_path / name)
    assert settings_kind(tmp_path) == "folder"


def settings_kind(root: Path) -> str:
    return str(detect_source(root).entry["kind"])


def test_init_takes_classes_called_like_labels_for_classes(tmp_path: Path) -> None:
    for name in ("mask", "no_mask"):
        for stem in ("a", "b"):
            image(tmp_path / name / f"{stem}.jpg")
    assert settings_kind(tmp_path) == "imagefolder"
