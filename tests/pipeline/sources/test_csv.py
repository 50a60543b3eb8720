"""The csv source: one class, several in a cell, a column for each; splits; cells without a meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord, csv

UNKNOWN = None
CHEXPERT = """\
Path,Sex,No Finding,Edema,Fracture
train/p1/a.jpg,Female,1.0,0.0,
train/p2/a.jpg,Male,,-1.0,1.0
train/p3/a.jpg,Male,,,
"""
NIH = """\
Image Index,Finding Labels,Age
1.png,No Finding,50
2.png,Hernia|Effusion,51
3.png,,52
4.png,Effusion,53
"""
FINDINGS: dict[str, Any] = {"image": "Path", "labels": ["No Finding", "Edema", "Fracture"]}
SEVERAL: dict[str, Any] = {"image": "Image Index", "label": "Finding Labels", "separator": "|"}


def open_source(root: Path, text: str = "", name: str = "set.csv", **options: Any) -> csv.Source:
    if text:
        root.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return csv.Source(csv.Config(path=str(root / name if text else root), **options))


def probs(record: SourceRecord, task: str = "multilabel") -> list[float | None]:
    """Return the probabilities of a record's label, None for unknown."""
    found = record.truth((4, 3)).values[task]["probs"]
    assert found.dtype == np.float32
    return [None if np.isnan(entry) else float(entry) for entry in found]


def test_csv_source_reads_one_class_per_image(tmp_path: Path) -> None:
    source = open_source(tmp_path, "\ufeffimage, label\na.jpg,dog\n\n  sub/b.jpg ,cat\nc.jpg,\n")
    assert source.spaces()["classification"].classes == ("cat", "dog")
    first, second, third = source.records()
    assert [first.name, second.name] == ["a.jpg", "sub/b.jpg"]
    assert (probs(first, "classification"), probs(second, "classification")) == ([0, 1], [1, 0])
    assert third.truth((4, 3)).notes == ["no label"]


def test_csv_source_reads_a_column_for_each_class(tmp_path: Path) -> None:
    source = open_source(tmp_path, CHEXPERT, **FINDINGS)
    spaces = source.spaces()
    assert spaces.keys() == {"multilabel"}
    assert spaces["multilabel"].classes == ("No Finding", "Edema", "Fracture")
    first, second, third = source.records()
    assert probs(first) == [1, 0, UNKNOWN]
    assert probs(second) == [UNKNOWN, UNKNOWN, 1]
    assert third.truth((4, 3)).values == {}, "nothing is known"
    assert third.truth((4, 3)).notes == ["no label"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"uncertain": "positive"}, [UNKNOWN, 1, 1]),
        ({"uncertain": "negative"}, [UNKNOWN, 0, 1]),
        ({"blank": "negative"}, [0, UNKNOWN, 1]),
    ],
)
def test_csv_source_takes_uncertain_and_blank_cells_as_told(
    tmp_path: Path, options: dict[str, str], wanted: list[float | None]
) -> None:
    _, second, _ = open_source(tmp_path, CHEXPERT, **FINDINGS, **options).records()
    assert probs(second) == wanted


def test_csv_source_reads_several_classes_in_a_cell(tmp_path: Path) -> None:
    source = open_source(tmp_path, NIH, **SEVERAL, no_class=["No Finding"])
    assert source.spaces()["multilabel"].classes == ("Effusion", "Hernia")
    first, second, third, fourth = source.records()
    assert [probs(record) for record in (first, second, fourth)] == [[0, 0], [1, 1], [1, 0]]
    assert third.truth((4, 3)).notes == ["no label"]
    blank = list(open_source(tmp_path, NIH, **SEVERAL, no_class=["No Finding"], blank="negative").records())[2]
    assert probs(blank) == [0, 0]
    assert open_source(tmp_path, NIH, **SEVERAL).spaces()["multilabel"].classes == ("Effusion", "Hernia", "No Finding")


def test_csv_source_quotes_file_line_column_and_value_of_bad_cells(tmp_path: Path) -> None:
    text = 'Path,No Finding,Edema,Fracture\n"a\nb.jpg",1,0,1\nc.jpg,1,2,\n'
    _, bad = open_source(tmp_path, text, **FINDINGS).records()
    wanted = rf"{tmp_path}/set.csv line 4, column 'Edema': '2' is none of 1 \(present\), 0 \(absent\), -1"
    with pytest.raises(DataError, match=wanted):
        bad.truth((4, 3))
    (both,) = open_source(tmp_path, "image,label\na.jpg,No|Hernia\n", separator="|", no_class=["No"]).records()
    with pytest.raises(DataError, match=r"line 2, column 'label': 'No\|Hernia' names classes, and says that there is"):
        both.truth((4, 3))
    (other,) = open_source(tmp_path, "image,label\na.jpg,emu\n", classes=["cat", "dog"]).records()
    with pytest.raises(DataError, match="line 2, column 'label': label 'emu' is not among the 2 classes: cat, dog"):
        other.truth((4, 3))


def test_csv_source_reads_splits_from_a_column_file_names_and_folders(tmp_path: Path) -> None:
    source = open_source(tmp_path / "one", "image,split\na.jpg,valid\nb.jpg,test\n")
    assert [record.split for record in source.records()] == ["val", "test"]
    for name in ("train.csv", "valid.csv"):
        open_source(tmp_path / "two", f"image\n{name}.jpg\n", name)
    found = {record.name: record.split for record in open_source(tmp_path / "two").records()}
    assert found == {"train.csv.jpg": "train", "valid.csv.jpg": "val"}
    source = open_source(tmp_path / "three", "image\nx/test/val.jpg\ntrain/1.jpg\n")
    assert [record.split for record in source.records()] == ["test", "train"]
    source = open_source(tmp_path / "words", "image\nval/1.jpg\n2.jpg\n", "training_labels.csv")
    assert [record.split for record in source.records()] == ["val", "train"], "a word in the name yields to a folder"
    source = open_source(tmp_path / "called", "image\ntrain/1.jpg\n", "val.csv")
    assert [record.split for record in source.records()] == ["val"], "a file of a split may list images of any folder"
    source = open_source(tmp_path / "four", "image,split\na.jpg,spare\n")
    with pytest.raises(DataError, match=r"set.csv line 2: split 'spare' is none of train, val, test"):
        list(source.records())


def test_csv_source_holds_out_rows_by_hash(tmp_path: Path) -> None:
    text = "image\n" + "".join(f"{number}.jpg\n" for number in range(100))
    splits = [record.split for record in open_source(tmp_path, text, hold_out=0.3).records()]
    assert 15 < splits.count("test") < 45
    (tmp_path / "images").mkdir()
    assert splits == [record.split for record in open_source(tmp_path, text, hold_out=0.3, images="images").records()]


def test_csv_source_reads_images_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"bytes")
    (record,) = open_source(tmp_path / "lists", "image\na.jpg\n", images="../photos").records()
    assert record.read() == b"bytes"
    with pytest.raises(ConfigError, match=f"images: there is no folder {tmp_path}/lists/none"):
        open_source(tmp_path / "lists", images="none")


def test_csv_source_lists_rows_that_can_not_be_images(tmp_path: Path) -> None:
    rows = ["../a.jpg", "/etc/passwd", '""', "b.jpg", "./b.jpg", "https://example.org/a.jpg"]
    source = open_source(tmp_path / "set", "image\n" + "\n".join(rows) + "\n")
    (record,) = source.records()
    assert record.name == "b.jpg"
    named, twice = [f"set.csv line {line}" for line in (2, 3, 4, 7)], "b.jpg"
    assert [name for name, _ in source.problems] == [*named[:3], twice, named[3]]
    assert "listed twice" in source.problems[3][1]
    assert all("leads to no file in" in reason for name, reason in source.problems if name != twice)


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("image,label\n", {"image": "path"}, "there is no column 'path'; there are image, label"),
        ("image,label\n", {"labels": ["Edema"]}, "there is no column 'Edema'"),
        ("image\n", {"separator": "|"}, "there is no column 'label'"),
        ("image,label\n", {"no_class": ["No"]}, "no_class: each image has one class here; give the `separator`"),
        ("", {}, "no .csv files in"),
    ],
)
def test_csv_source_names_columns_that_are_not_there(
    tmp_path: Path, text: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_source(tmp_path, text, **options).spaces()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image,label\na.jpg\n", "set.csv line 2: 1 cells, where the first line names 2 columns"),
        ("image,image\n", "two columns have the same name"),
        ("image\n", "lists no image"),
        ('image\n"a.jpg\n', "can't be read as CSV"),
        ("image,label\na.jpg,Cat\nb.jpg,cat\n", "'Cat' and 'cat' differ only by case"),
    ],
)
def test_csv_source_refuses_malformed_files(tmp_path: Path, text: str, reason: str) -> None:
    source = open_source(tmp_path, text)
    with pytest.raises(DataError, match=reason):
        source.spaces(), list(source.records())


def test_csv_config_refuses_two_ways_to_label() -> None:
    with pytest.raises(
        ValidationError, match=r"labels gives each class a column, named like it; label, classes has no"
    ):
        csv.Config(path="x", labels=("a",), label="b", classes=("c",))
