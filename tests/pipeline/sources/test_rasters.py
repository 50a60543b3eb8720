"""Sets of images and label files: folders, suffixes of stems, splits and lists; several labels in one set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord, TrueLabels, masks, rasters

SIZE = (3, 2)
IDS = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
CLASSES = ("ground", "car")


def image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE).save(file)


def label(file: Path, numbers: Any = IDS) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(numbers)).save(file)


def open_masks(root: Path, **options: Any) -> masks.Source:
    return masks.Source(masks.Config.model_validate({"path": str(root), "classes": CLASSES, **options}))


def labelled(source: masks.Source) -> dict[str, tuple[str, bool]]:
    """Return split and whether there is a right label, by name."""
    return {record.name: (record.split, is_labelled(record)) for record in source.records()}


def is_labelled(record: SourceRecord) -> bool:
    values = record.truth(SIZE).values
    assert not values or values["segmentation"]["classes"].tolist() == IDS.tolist()
    return bool(values)


@pytest.mark.parametrize("suffix", ["_mask", "-seg", ".label"])
def test_masks_source_strips_suffix_of_masks_in_another_folder(suffix: str, tmp_path: Path) -> None:
    image(tmp_path / "pictures/a.jpg")
    image(tmp_path / f"pictures/b{suffix}.jpg")
    label(tmp_path / f"gt/a{suffix}.png")
    label(tmp_path / "gt/b.png")
    source = open_masks(tmp_path, images="pictures", masks="gt", mask_suffix=suffix, hold_out=0)
    assert labelled(source) == {
        "pictures/a.jpg": ("train", True),
        f"pictures/b{suffix}.jpg": ("train", False),
    }
    assert source.problems == [], "a file without the suffix is no mask"


@pytest.mark.parametrize("folder", [".", "all"])
def test_masks_source_reads_images_and_masks_in_one_folder(folder: str, tmp_path: Path) -> None:
    root = tmp_path / folder
    for name in ("train/a", "train/deep/b", "val/c"):
        image(root / f"{name}.png")
        label(root / f"{name}_mask.png")
    image(root / "val/unlabelled.jpg")
    (root / "val/notes.txt").write_text("x")
    source = open_masks(tmp_path, images=folder, masks=folder, mask_suffix="_mask")
    prefix = "" if folder == "." else f"{folder}/"
    assert labelled(source) == {
        f"{prefix}train/a.png": ("train", True),
        f"{prefix}train/deep/b.png": ("train", True),
        f"{prefix}val/c.png": ("val", True),
        f"{prefix}val/unlabelled.jpg": ("val", False),
    }
    assert source.count() == 4
    assert dict(source.skipped) == {".txt": 1}
    assert len(source.file_stamps()) == 7
    label(root / "val/d_mask.png")
    list(source.records())
    assert source.problems == [(f"{prefix}val/d_mask.png", "a mask without an image")]


def test_masks_source_strips_suffix_of_images(tmp_path: Path) -> None:
    """As Cityscapes calls its files."""
    for name in ("train/ulm/ulm_1", "val/bonn/bonn_1"):
        image(tmp_path / f"leftImg8bit/{name}_leftImg8bit.png")
        for kind in ("labelIds", "instanceIds", "color"):
            label(tmp_path / f"gtFine/{name}_gtFine_{kind}.png", IDS if kind == "labelIds" else IDS + 7)
    options = {"images": "leftImg8bit", "masks": "gtFine", "mask_suffix": "_gtFine_labelIds"}
    source = open_masks(tmp_path, image_suffix="_leftImg8bit", **options)
    assert labelled(source) == {
        "leftImg8bit/train/ulm/ulm_1_leftImg8bit.png": ("train", True),
        "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png": ("val", True),
    }
    image(tmp_path / "leftImg8bit/train/other.png")
    assert len(labelled(source)) == 2
    assert dict(source.skipped) == {".png without _leftImg8bit": 1}


def test_masks_source_refuses_one_folder_without_a_suffix(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match=r"lie in one another; .*as `mask_suffix: _mask`"):
        open_masks(tmp_path, images=".", masks=".")
    with pytest.raises(ValidationError, match="names nothing"):
        open_masks(tmp_path, images=".", masks=".", mask_suffix="")


def test_masks_source_refuses_two_files_of_one_stem_and_suffix(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        image(tmp_path / name)
    label(tmp_path / "a_mask.png")
    label(tmp_path / "a_mask.tif")
    source = open_masks(tmp_path, images=".", masks=".", mask_suffix="_mask")
    with pytest.raises(DataError, match=r"a_mask.png and a_mask.tif are labels of the same image"):
        list(source.records())
    (tmp_path / "a_mask.tif").unlink()
    image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.jpg and a.png are images of the same label, .*a_mask.png: keep one"):
        list(source.records())


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("training", "validation")])
def test_masks_source_finds_folders_inside_split_folders(train: str, val: str, tmp_path: Path) -> None:
    for name in (f"{train}/images/a", f"{train}/images/b", f"{val}/images/a", "test/images/c"):
        image(tmp_path / f"{name}.jpg")
    for name in (f"{train}/masks/a", f"{train}/masks/b", f"{val}/masks/a"):
        label(tmp_path / f"{name}.png")
    source = open_masks(tmp_path)
    assert labelled(source) == {
        f"{train}/images/a.jpg": ("train", True),
        f"{train}/images/b.jpg": ("train", True),
        f"{val}/images/a.jpg": ("val", True),
        "test/images/c.jpg": ("test", False),
    }
    assert source.count() == 4
    assert not source.problems


def test_masks_source_fills_split_into_names_of_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image(tmp_path / split / "a.png")
        label(tmp_path / f"{split}_labels/a_L.png")
    options = {"images": "{split}", "masks": "{split}_labels", "mask_suffix": "_L"}
    assert labelled(open_masks(tmp_path, **options)) == {"train/a.png": ("train", True), "val/a.png": ("val", True)}
    with pytest.raises(ConfigError, match=r"images: 'all' lacks the \{split\} that '\{split\}_labels' has"):
        open_masks(tmp_path, **options | {"images": "all"})
    with pytest.raises(ConfigError, match=r"images: there is no folder .* with train, val or test"):
        open_masks(tmp_path, **options | {"images": "{split}_pictures"})
    with pytest.raises(ConfigError, match="masks: there is no folder"):
        open_masks(tmp_path, **options | {"masks": "{split}_gt"})


def write_listed(root: Path, names: Sequence[str] = ("a", "b", "deep/c", "d e", "unlisted")) -> None:
    for name in names:
        image(root / f"images/{name}.jpg")
        label(root / f"masks/{name}.png")


@pytest.mark.parametrize(
    "lines",
    [
        ("a\n\nb\n", "deep/c", "d e"),
        ("a.jpg\r\nb.jpg", "deep/c.jpg\r\n", "d e.jpg"),
        ("./a\nimages/b.jpg", "images/deep/c", "\ufeffimages/d e.jpg"),
        ("images/a.jpg masks/a.png\n/data/set/images/b.jpg /data/set/masks/b.png", r"deep\c.jpg", "d e"),
        ("a 1\nb -1", "c", "/elsewhere/d e.jpg"),
    ],
)
def test_masks_source_takes_splits_from_lists(lines: tuple[str, str, str], tmp_path: Path) -> None:
    write_listed(tmp_path)
    for split, text in zip(("train", "val", "test"), lines, strict=True):
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
    source = open_masks(tmp_path)
    assert labelled(source) == {
        "images/a.jpg": ("train", True),
        "images/b.jpg": ("train", True),
        "images/d e.jpg": ("test", True),
        "images/deep/c.jpg": ("val", True),
    }
    assert not source.problems
    assert source.skipped == {"in no list": 1}
    assert {"train.txt", "val.txt", "test.txt"} < {name for name, *_ in source.file_stamps()}


def test_masks_source_finds_lists_of_pascal_voc(tmp_path: Path) -> None:
    for name in ("2007_1", "2007_2", "2007_3"):
        image(tmp_path / f"JPEGImages/{name}.jpg")
    for name in ("2007_1", "2007_2"):
        label(tmp_path / f"SegmentationClass/{name}.png")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_2\n")
    (lists / "trainval.txt").write_text("2007_1\n2007_2\n")
    source = open_masks(tmp_path, images="JPEGImages", masks="SegmentationClass")
    assert labelled(source) == {
        "JPEGImages/2007_1.jpg": ("train", True),
        "JPEGImages/2007_2.jpg": ("val", True),
    }
    assert source.skipped == {"in no list": 1}


def test_masks_source_counts_lines_of_lists_without_an_image(tmp_path: Path) -> None:
    write_listed(tmp_path, ["a", "b", "x/same", "y/same"])
    (tmp_path / "mine.txt").write_text("a\nmissing\nsame\n../../etc/passwd\na\n")
    (tmp_path / "theirs.txt").write_text("b\na.jpg\n")
    source = open_masks(tmp_path, lists={"train": "mine.txt", "test": "theirs.txt"})
    assert [(record.name, record.split) for record in source.records()] == [
        ("images/a.jpg", "train"),
        ("images/b.jpg", "test"),
    ]
    reason = "but no image of the set is called so, or several are"
    assert source.problems == [
        ("mine.txt line 2", f"names 'missing', {reason}"),
        ("mine.txt line 3", f"names 'same', {reason}"),
        ("mine.txt line 4", f"names '../../etc/passwd', {reason}"),
        ("mine.txt line 5", "names 'a', which mine.txt line 1 lists already"),
        ("theirs.txt line 2", "names 'a.jpg', which mine.txt line 1 lists already"),
    ]
    with pytest.raises(ConfigError, match=r"lists\.train: there is no file .*none\.txt"):
        open_masks(tmp_path, lists={"train": "none.txt"})
    (tmp_path / "mine.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"mine\.txt: is no text in UTF-8"):
        list(source.records())


def test_masks_source_lists_decide_over_folders(tmp_path: Path) -> None:
    write_listed(tmp_path, ["train/a", "train/b", "val/c"])
    (tmp_path / "val.txt").write_text("b\nval/c\n")
    (tmp_path / "train.txt").write_text("a\n")
    found = {record.name: record.split for record in open_masks(tmp_path).records()}
    assert found == {"images/train/a.jpg": "train", "images/train/b.jpg": "val", "images/val/c.jpg": "val"}


def test_masks_source_holds_out_scenes(tmp_path: Path) -> None:
    write_listed(tmp_path, ["hall_1", "hall_2", "lab_1"])
    found = {record.name: record.split for record in open_masks(tmp_path, hold_out=["hall"]).records()}
    assert found == {"images/hall_1.jpg": "test", "images/hall_2.jpg": "test", "images/lab_1.jpg": "train"}


MILLIMETRES = np.array([[1000, 0, 2500], [1, 65535, 7]], np.uint16)
NORMALS = np.array([[[128, 128, 255], [0, 0, 0], [128, 255, 128]]] * 2, np.uint8)


def write_set(root: Path) -> None:
    for name in ("a", "b"):
        image(root / f"images/{name}.jpg")
        label(root / f"masks/{name}.png")
    label(root / "depth/a.png", MILLIMETRES)
    np.save(root / "depth/b.npy", MILLIMETRES.astype(np.float32))
    label(root / "normals/a.png", NORMALS)


def open_rasters(root: Path, **options: Any) -> rasters.Source:
    return rasters.Source(rasters.Config.model_validate({"path": str(root), "classes": CLASSES, **options}))


def truths(source: rasters.Source) -> dict[str, TrueLabels]:
    return {record.name: record.truth(SIZE) for record in source.records()}


def test_rasters_source_reads_all_labels_of_an_image(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "val.txt").write_text("b\n")
    source = open_rasters(tmp_path, masks="masks", depth="depth", normals="normals")
    assert set(source.spaces()) == {"segmentation", "depth", "normals"}
    assert [record.split for record in source.records()] == ["train", "val"]
    first, second = truths(source).values()
    assert first.values["segmentation"]["classes"].tolist() == IDS.tolist()
    assert first.values["depth"]["depth"].tolist() == (MILLIMETRES * np.float32(0.001)).tolist()
    assert first.values["normals"]["normals"][0, :2].round(2).tolist() == [[0, 0, 1], [0, 0, 0]]
    assert set(second.values) == {"segmentation", "depth"}
    assert second.notes == ["depth beyond 65504 m is unknown", "no normal map"]
    assert len(source.file_stamps()) == 9
    assert source.count() == 2


def test_rasters_source_reads_labels_beside_images(tmp_path: Path) -> None:
    image(tmp_path / "x.png")
    label(tmp_path / "x_mask.png")
    label(tmp_path / "x_depth.png", MILLIMETRES)
    suffixes = {"mask_suffix": "_mask", "depth_suffix": "_depth"}
    source = open_rasters(tmp_path, images=".", masks=".", depth=".", **suffixes)
    assert {name: set(truth.values) for name, truth in truths(source).items()} == {"x.png": {"segmentation", "depth"}}
    assert not source.problems
    assert not source.skipped


def test_rasters_source_refuses_options_that_mean_nothing(tmp_path: Path) -> None:
    write_set(tmp_path)
    with pytest.raises(ConfigError, match="name the folder of one of them"):
        open_rasters(tmp_path)
    with pytest.raises(ConfigError, match="'from_depth' needs the folder of the depth maps"):
        open_rasters(tmp_path, normals="from_depth")
    with pytest.raises(ConfigError, match="depth: there is no folder"):
        open_rasters(tmp_path, masks="masks", depth="distances")
    with pytest.raises(ConfigError, match="lie in one another"):
        open_rasters(tmp_path, masks="masks", depth="masks")


def test_rasters_source_derives_normals_from_depth(tmp_path: Path) -> None:
    write_set(tmp_path)
    camera = '{"scenes": {"a": {"fx": 4, "fy": 4, "cx": 1, "cy": 1}}}'
    (tmp_path / "cameras.json").write_text(camera)
    source = open_rasters(tmp_path, depth="depth", normals="from_depth")
    assert set(source.spaces()) == {"depth", "normals"}
    assert "cameras.json" in {name for name, *_ in source.file_stamps()}
