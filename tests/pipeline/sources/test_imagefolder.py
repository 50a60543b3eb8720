"""The imagefolder source: classes and splits by folder."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord, imagefolder


def images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(root / name)


def open_source(root: Path, hold_out: float = 0.2) -> imagefolder.Source:
    return imagefolder.Source(imagefolder.Config(path=str(root), hold_out=hold_out))


def class_of(source: imagefolder.Source, record: SourceRecord) -> str:
    probs = record.truth((2, 2)).values["classification"]["probs"]
    assert (probs.sum(), probs.max()) == (1, 1)
    return source.spaces()["classification"].classes[probs.argmax()]


def test_imagefolder_source_reads_splits_and_classes(tmp_path: Path) -> None:
    images(
        tmp_path, "train/dog/1.png", "train/cat/1.png", "train/cat/deep/2.png", "validation/dog/1.png", "test/emu/1.png"
    )
    source = open_source(tmp_path)
    assert source.spaces()["classification"].classes == ("cat", "dog", "emu")
    found = {record.name: (record.split, class_of(source, record)) for record in source.records()}
    assert found == {
        "test/emu/1.png": ("test", "emu"),
        "train/cat/1.png": ("train", "cat"),
        "train/cat/deep/2.png": ("train", "cat"),
        "train/dog/1.png": ("train", "dog"),
        "validation/dog/1.png": ("val", "dog"),
    }
    assert source.problems == []


def test_imagefolder_source_holds_out_a_stable_share_of_each_class(tmp_path: Path) -> None:
    images(tmp_path, *(f"{name}/{i}.png" for name in ("a", "b") for i in range(100)))
    before = {record.name: record.split for record in open_source(tmp_path).records()}
    for name in ("a", "b"):
        share = sum(split == "test" for file, split in before.items() if file.startswith(name)) / 100
        assert 0.1 < share < 0.32
    assert set(before.values()) == {"train", "test"}
    images(tmp_path, *(f"a/new {i}.png" for i in range(50)), "c/1.png")
    after = {record.name: record.split for record in open_source(tmp_path).records()}
    assert {name: after[name] for name in before} == before
    assert {record.split for record in open_source(tmp_path, hold_out=0).records()} == {"train"}
    assert {record.split for record in open_source(tmp_path, hold_out=1).records()} == {"test"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train/Dog", "train/dog"),
        ("train/Dog", "val/dog"),
        ("Dog", "dog"),
        ("café", unicodedata.normalize("NFD", "café")),
    ],
)
def test_imagefolder_source_refuses_classes_that_look_alike(tmp_path: Path, one: str, other: str) -> None:
    images(tmp_path, f"{one}/1.png", f"{other}/2.png")
    if len(list(tmp_path.rglob("*.png"))) != 2 or sum(p.is_dir() for p in tmp_path.rglob("*")) < 2:
        pytest.skip("this file system does not tell the names apart")
    names = sorted(name.split("/")[-1] for name in (one, other))
    with pytest.raises(DataError) as raised:
        open_source(tmp_path).spaces()
    assert all(repr(name) in str(raised.value) for name in names)


def test_imagefolder_source_passes_over_folders_of_the_system(tmp_path: Path) -> None:
    images(tmp_path, "cat/1.png", "dog/1.png", "cat/@eaDir/1.png/SMALL.jpg", "__MACOSX/cat/1.png", "$RECYCLE.BIN/2.png")
    (tmp_path / "lost+found").mkdir()
    source = open_source(tmp_path, hold_out=0)
    assert source.spaces()["classification"].classes == ("cat", "dog")
    assert [record.name for record in source.records()] == ["cat/1.png", "dog/1.png"]
    assert not source.problems


def test_imagefolder_source_keeps_empty_class(tmp_path: Path) -> None:
    images(tmp_path, "a/1.png", "c/1.png")
    (tmp_path / "b").mkdir()
    source = open_source(tmp_path)
    assert source.spaces()["classification"].classes == ("a", "b", "c")
    assert [class_of(source, record) for record in source.records()] == ["a", "c"]
    before = source.file_stamps()
    (tmp_path / "b").rmdir()
    assert open_source(tmp_path).file_stamps() != before


def test_imagefolder_source_refuses_no_images_or_no_classes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no images found"):
        list(open_source(tmp_path).records())
    images(tmp_path / "a", "1.png")
    with pytest.raises(DataError, match="no class folders; expected <split>/<class>/"):
        open_source(tmp_path / "a").spaces()
    with pytest.raises(ConfigError, match="there is no folder"):
        open_source(tmp_path / "z")


def test_imagefolder_source_reports_images_outside_classes(tmp_path: Path) -> None:
    images(tmp_path, "train/a/1.png", "train/stray.png", "cover.png")
    source = open_source(tmp_path)
    assert [record.name for record in source.records()] == ["train/a/1.png"]
    assert source.problems == [
        ("cover.png", "lies in no class folder"),
        ("train/stray.png", "lies in no class folder"),
    ]


def test_has_split_folders_takes_a_single_train_for_a_class(tmp_path: Path) -> None:
    images(tmp_path, "train/1.png", "bus/1.png", "car/1.png")
    assert open_source(tmp_path).spaces()["classification"].classes == ("bus", "car", "train")


def test_has_split_folders_refuses_splits_among_other_folders(tmp_path: Path) -> None:
    images(tmp_path, "train/a/1.png", "val/a/1.png", "extra/a/1.png")
    with pytest.raises(DataError, match="holds split folders, but also extra"):
        open_source(tmp_path).spaces()
