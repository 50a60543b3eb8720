"""`must init` reads folders as what they are: labels are no classes, and what is not read is said."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import must
from flows.plan.selection import Selection
from ingest.init import DetectedSource, detect_source, write_recipe
from pipeline.data.bands import inspect_pixels
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.plugins import modules
from pipeline.recipe.reader import read_recipe
from pipeline.sources import BaseSource
from tests.pipeline.sources.box_sets import BOX_SETS


def write_images(folder: Path, names: str = "abc", mode: str = "RGB", suffix: str = "jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new(mode, (40, 30), number if mode in "LP" else (number, 90, 40)).save(folder / f"{name}.{suffix}")


def detect(folder: Path) -> DetectedSource:
    return detect_source(folder)


def kind_of(folder: Path) -> str:
    return str(detect(folder).entry["kind"])


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("JPEGImages", "SegmentationClass"),
        ("train_img", "train_mask"),
        ("image", "ground_truth"),
        ("imgs", "gt"),
        ("train/images", "train/labels"),
        ("pictures_2020", "annotations"),
    ],
)
def test_init_takes_no_folders_of_images_and_labels_for_classes_by_name(
    images: str, labels: str, tmp_path: Path
) -> None:
    write_images(tmp_path / images)
    write_images(tmp_path / labels, "xyz")
    assert kind_of(tmp_path) != "imagefolder"


def test_init_takes_no_folders_of_images_and_labels_for_classes_by_content(tmp_path: Path) -> None:
    write_images(tmp_path / "one")
    write_images(tmp_path / "other", mode="P", suffix="png")
    assert kind_of(tmp_path) == "folder"


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_init_takes_folders_with_the_same_names_for_classes(mode: str, tmp_path: Path) -> None:
    write_images(tmp_path / "mask", mode=mode)
    write_images(tmp_path / "no_mask", mode=mode)
    found = detect(tmp_path)
    assert (found.entry["kind"], found.tasks) == ("imagefolder", ("classification",))
    assert found.describe() == f"{tmp_path}: imagefolder, with labels for classification"


def test_init_reads_what_lies_in_folders_of_nothing_else(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / "archive" / "pets" / name)
    found = detect(tmp_path)
    assert (found.entry["kind"], found.entry["path"]) == ("imagefolder", str(tmp_path / "archive" / "pets"))
    write_images(tmp_path / "photos" / "deep" / "er")
    assert detect(tmp_path / "photos").entry == {"kind": "folder", "path": str(tmp_path / "photos")}
    write_images(tmp_path / "trained" / "train" / "cat")
    write_images(tmp_path / "trained" / "train" / "dog", "def")
    assert detect(tmp_path / "trained").entry == {"kind": "imagefolder", "path": str(tmp_path / "trained")}


def test_init_ends_in_a_folder_that_links_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path)
    with pytest.raises(DataError, match=f"^{tmp_path}: no images in a known layout found"):
        detect(tmp_path)


@pytest.mark.parametrize("kind", BOX_SETS)
def test_init_writes_recipes_of_boxes_that_can_be_planned_and_read(kind: str, tmp_path: Path) -> None:
    for name, data in BOX_SETS[kind][0]().items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    [line] = write_recipe([tmp_path / "set"], tmp_path / "mine.yaml")
    assert "not read" not in line
    assert f"{tmp_path / 'set'}: {kind}" in line
    recipe = read_recipe(tmp_path / "mine.yaml")
    assert recipe.data["set"].kind == kind
    assert next(each.task for each in recipe.teachers.values()) == "detection"
    overrides = ["runtime.runner=inline", "data.set.max_bad=1"]
    outcome = must.run(tmp_path / "mine.yaml", tmp_path / "root", overrides, Selection("data.set"))
    assert outcome.artifacts["data.set"].counts["images"] == 3


def test_init_says_which_files_are_not_read(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name)
    for name in ("cat/notes.doc", "cat/b.cr2", "dog/c.CR2", "README"):
        (tmp_path / name).write_bytes(b"text")
    line = detect(tmp_path).describe()
    assert line.endswith("imagefolder, with labels for classification; not read: 1 without a suffix, 2 .cr2, 1 .doc")


def test_init_names_the_folder_and_kind_that_can_not_be_read(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        write_images(tmp_path / name)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}, as masks: classes: there is no file .*classes\.json"):
        detect(tmp_path)


def write_numbers(file: Path, shape: tuple[int, ...], dtype: str = "uint16") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    if file.suffix == ".npy":
        np.save(file, numbers)
    else:
        kind = "rgb" if shape[-1] == 3 and dtype == "uint8" else "minisblack"
        tifffile.imwrite(file, numbers, photometric=kind, planarconfig="contig" if len(shape) > 2 else None)


@pytest.mark.parametrize("suffix", ["tif", "npy"])
@pytest.mark.parametrize("masks", [True, False], ids=["masks", "pool"])
def test_init_writes_the_channels_of_images_that_are_no_pictures(masks: bool, suffix: str, tmp_path: Path) -> None:
    cases: list[tuple[tuple[int, ...], str, int | None]] = [((30, 40, 5), "uint16", 5), ((30, 40), "float32", 1)]
    cases += [((30, 40), "uint8", None), ((30, 40, 3), "uint8", None)] if suffix == "tif" else []
    for number, (shape, dtype, channels) in enumerate(cases):
        folder = tmp_path / f"set{number}"
        write_numbers(folder / f"images/a.{suffix}", shape, dtype)
        if masks:
            (folder / "masks").mkdir()
            Image.fromarray((np.arange(1200).reshape(30, 40) % 2).astype(np.uint8)).save(folder / "masks/a.png")
        found = detect(folder)
        assert (found.entry["kind"], found.entry.get("channels")) == ("masks" if masks else "folder", channels)
        assert "can't be used" not in found.describe()
        [record] = found.source.records()
        assert inspect_pixels(record.read(), channels or 3)[:2] == (40, 30)


def test_init_says_which_numbers_it_can_not_read(tmp_path: Path) -> None:
    write_numbers(tmp_path / "first.tif", (30, 40, 3), "float32")
    assert (
        "; can't be used: first.tif: a TIFF of 3 bands of float32, which is no picture" in detect(tmp_path).describe()
    )
    write_numbers(tmp_path / "set/images/a.npy", (5, 30, 40))
    with pytest.raises(DataError, match="no images found; they are known by their suffix"):
        detect(tmp_path / "set")


@pytest.mark.parametrize("kind", modules("pipeline.sources"))
def test_source_detect_finds_nothing_in_a_folder_without_files(kind: str, tmp_path: Path) -> None:
    source: type[BaseSource] = importlib.import_module(f"pipeline.sources.{kind}").Source
    assert source.detect(str(tmp_path)) is None
