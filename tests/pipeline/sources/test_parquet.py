"""The parquet source: images and labels as Hugging Face and others write them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data.decode import decode_image, inspect_image
from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord, parquet

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (3, 2), shade).save(out, "PNG")
    return out.getvalue()


def write(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, **options)


def cells(count: int) -> pa.Array:
    return pa.array([{"bytes": picture(i), "path": f"{i}.png"} for i in range(count)], IMAGE)


def open_source(path: Path, **options: Any) -> parquet.Source:
    return parquet.Source(parquet.Config(path=str(path), **options))


def classes(source: parquet.Source, records: list[SourceRecord]) -> list[str]:
    names = source.spaces()["classification"].classes
    return [names[record.truth((3, 2)).values["classification"]["probs"].argmax()] for record in records]


HUGGING_FACE = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})}
PLAIN = {"classes": '["cat", "dog"]'}


NUMBERED = {"huggingface": json.dumps({"info": {"features": {"label": {"names": {"1": "dog", "0": "cat"}}}}})}


@pytest.mark.parametrize("metadata", [HUGGING_FACE, PLAIN, NUMBERED])
def test_parquet_source_reads_images_labels_and_class_names(tmp_path: Path, metadata: dict[str, str]) -> None:
    write(tmp_path / "train.parquet", {"image": cells(3), "label": [1, 0, 1], "note": ["x"] * 3}, metadata)
    source = open_source(tmp_path / "train.parquet")
    records = list(source.records())
    assert [record.name for record in records] == ["train.parquet#0", "train.parquet#1", "train.parquet#2"]
    assert {record.split for record in records} == {"train"}
    assert [decode_image(record.read()).getpixel((0, 0)) for record in records] == [(i, i, i) for i in range(3)]
    assert classes(source, records) == ["dog", "cat", "dog"]


def test_parquet_source_reads_plain_binary_and_labels_by_name(tmp_path: Path) -> None:
    columns = {"img": pa.array([picture(1), picture(2)], pa.large_binary()), "kind": ["emu", "ape"]}
    write(tmp_path / "x.parquet", columns)
    source = open_source(tmp_path, image="img", label="kind")
    assert source.spaces()["classification"].classes == ("ape", "emu")
    records = list(source.records())
    assert records[1].read() == picture(2)
    assert classes(source, records) == ["emu", "ape"]


def test_parquet_source_has_no_label_space_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", {"image": cells(1)})
    source = open_source(tmp_path)
    assert source.spaces() == {}
    (record,) = source.records()
    assert record.truth((3, 2)).values == {}
    assert record.truth((3, 2)).notes == []


def test_parquet_source_reads_splits_from_paths(tmp_path: Path) -> None:
    names = ["data/train-00000-of-00002.parquet", "data/validation-0.parquet", "test/0000.parquet", "data/val.parquet"]
    for name in names:
        write(tmp_path / name, {"image": cells(1), "label": [0]}, PLAIN)
    found = {record.name: record.split for record in open_source(tmp_path).records()}
    assert found == {f"{name}#0": split for name, split in zip(names, ("train", "val", "test", "val"), strict=True)}


def test_parquet_source_reads_splits_from_a_column(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": cells(3), "split": ["test", "validation", "train"]})
    assert [record.split for record in open_source(tmp_path).records()] == ["test", "val", "train"]
    write(tmp_path / "train.parquet", {"image": cells(1), "split": ["spare"]})
    with pytest.raises(DataError, match=r"train.parquet#0: split 'spare' is none of"):
        list(open_source(tmp_path).records())


def test_parquet_source_holds_out_rows_by_hash(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", {"image": cells(100)})
    splits = [record.split for record in open_source(tmp_path, hold_out=0.3).records()]
    assert 15 < splits.count("test") < 45
    assert splits == [record.split for record in open_source(tmp_path, hold_out=0.3).records()]


def test_parquet_source_reports_missing_and_unknown_labels(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", {"image": cells(4), "label": pa.array([None, -1, 2, 1], pa.int64())}, PLAIN)
    first, second, third, fourth = open_source(tmp_path).records()
    assert first.truth((3, 2)).notes == second.truth((3, 2)).notes == ["no label"]
    with pytest.raises(DataError, match="label 2 is not among the 2 classes: cat, dog"):
        third.truth((3, 2))
    assert fourth.truth((3, 2)).values["classification"]["probs"].tolist() == [0, 1]


def multilabel(source: parquet.Source) -> list[list[float | None]]:
    """Return the probabilities of all records, None for unknown."""
    values = [record.truth((3, 2)).values["multilabel"]["probs"] for record in source.records()]
    return [[None if np.isnan(entry) else float(entry) for entry in probs] for probs in values]


LISTS = {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    "feature",
    [{"feature": LISTS, "_type": "Sequence"}, {"feature": LISTS, "_type": "List"}, [LISTS]],
    ids=["Sequence", "List", "list"],
)
def test_parquet_source_reads_lists_of_class_labels(tmp_path: Path, feature: Any) -> None:
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    labels = pa.array([[2, 0], [], [1], None], pa.list_(pa.int64()))
    write(tmp_path / "train.parquet", {"image": cells(4), "label": labels}, metadata)
    source = open_source(tmp_path, blank="negative")
    assert source.spaces()["multilabel"].classes == ("cat", "dog", "emu")
    assert multilabel(source) == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    *_, last = open_source(tmp_path).records()
    assert last.truth((3, 2)).notes == ["no label"]


def test_parquet_source_reads_lists_of_names(tmp_path: Path) -> None:
    labels = pa.array([["emu", "cat"], ["nothing"]], pa.list_(pa.string()))
    write(tmp_path / "train.parquet", {"image": cells(2), "label": labels})
    source = open_source(tmp_path, no_class=["nothing"])
    assert source.spaces()["multilabel"].classes == ("cat", "emu")
    assert multilabel(source) == [[1, 1], [0, 0]]


def test_parquet_source_reads_lists_of_dictionary_entries_in_several_row_groups(tmp_path: Path) -> None:
    entries = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1], pa.int32()), pa.array(["emu", "cat"]))
    labels = pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), entries)
    write(tmp_path / "train.parquet", {"image": cells(2), "label": labels}, row_group_size=1)
    source = open_source(tmp_path)
    assert source.spaces()["multilabel"].classes == ("cat", "emu")
    assert multilabel(source) == [[1, 1], [1, 0]]


def test_parquet_source_names_the_file_without_images(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": cells(0)})
    write(tmp_path / "b.parquet", {"image": cells(0)})
    with pytest.raises(DataError, match=r"no images found in .*a\.parquet and 1 more$"):
        list(open_source(tmp_path).records())


def test_parquet_source_reads_several_names_in_a_cell(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": cells(2), "label": ["emu|cat", "cat"]})
    assert multilabel(open_source(tmp_path, separator="|")) == [[1, 1], [1, 0]]


def test_parquet_source_reads_a_column_for_each_class(tmp_path: Path) -> None:
    columns = {
        "image": cells(4),
        "Edema": pa.array([1, 0, -1, None], pa.int8()),
        "Mass": pa.array([1.0, -1.0, float("nan"), 0.0]),
        "Hernia": [True, False, True, False],
    }
    write(tmp_path / "train.parquet", columns)
    source = open_source(tmp_path, labels=["Mass", "Edema", "Hernia"])
    assert source.spaces()["multilabel"].classes == ("Mass", "Edema", "Hernia")
    assert multilabel(source) == [[1, 1, 1], [None, 0, 0], [None, None, 1], [0, None, 0]]


def test_parquet_source_quotes_bad_cells(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": cells(1), "Edema": [3]})
    (record,) = open_source(tmp_path, labels=["Edema"]).records()
    with pytest.raises(DataError, match=r"train.parquet#0, column 'Edema': 3 is none of 1 \(present\)"):
        record.truth((3, 2))


def test_parquet_source_allows_a_split_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", {"image": cells(1)})
    write(tmp_path / "train.parquet", {"image": cells(1), "label": [1]}, PLAIN)
    source = open_source(tmp_path)
    assert source.spaces()["classification"].classes == ("cat", "dog")
    test, train = source.records()
    assert test.truth((3, 2)).notes == ["no label"]
    assert classes(source, [train]) == ["dog"]


def test_parquet_source_takes_blank_cells_but_no_missing_columns_as_negative(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", {"image": cells(1)})
    write(tmp_path / "train.parquet", {"image": cells(1), "label": pa.array([None], pa.list_(pa.int64()))}, PLAIN)
    test, train = open_source(tmp_path, blank="negative").records()
    assert test.truth((3, 2)).notes == ["no label"]
    assert train.truth((3, 2)).values["multilabel"]["probs"].tolist() == [0, 0]


def test_parquet_source_quarantines_rows_without_an_image(tmp_path: Path) -> None:
    rows = [
        {"bytes": None, "path": "far/away.jpg"},
        None,
        {"bytes": b"", "path": None},
        {"bytes": picture(5), "path": ""},
    ]
    write(tmp_path / "x.parquet", {"image": pa.array(rows, IMAGE)})
    away, null, empty, good = open_source(tmp_path).records()
    with pytest.raises(DataError, match=r"holds no bytes, only the path 'far/away.jpg'"):
        away.read()
    with pytest.raises(DataError, match="holds no image"):
        null.read()
    with pytest.raises(DataError, match="empty file"):
        inspect_image(empty.read())
    assert good.read() == picture(5)


def test_parquet_source_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """64 MB of noise, which does not compress, in row groups of 100 images as Hugging Face writes them."""
    noise = [np.random.default_rng(i).bytes(64_000) for i in range(1000)]
    write(tmp_path / "x.parquet", {"image": noise}, row_group_size=100, compression="none")
    del noise
    before = pa.total_allocated_bytes()
    peak = total = 0
    for record in open_source(tmp_path).records():
        total += len(record.read())
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert total == 64_000_000
    assert peak < 16_000_000


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"image": "picture"}, "there is no column 'picture'; there are image, label"),
        ({"label": "kind"}, "there is no column 'kind'"),
        ({"image": "label"}, "column 'label' is int64, not binary or struct"),
        ({}, "labels are int64, and no class names stated; state them as `classes`"),
    ],
)
def test_parquet_source_names_columns_that_do_not_fit(tmp_path: Path, options: dict[str, str], reason: str) -> None:
    write(tmp_path / "x.parquet", {"image": cells(1), "label": [0]})
    with pytest.raises(ConfigError, match=reason):
        open_source(tmp_path, **options).spaces()
    assert open_source(tmp_path, classes=["a", "b"]).spaces()["classification"].classes == ("a", "b")


@pytest.mark.parametrize("stated", ['"abc"', "5", '{"a": "b"}', "null"])
def test_parquet_source_takes_no_names_from_metadata_of_another_meaning(tmp_path: Path, stated: str) -> None:
    write(tmp_path / "x.parquet", {"image": cells(2), "label": ["a", "b"]}, {"classes": stated})
    assert open_source(tmp_path).spaces()["classification"].classes == ("a", "b")


@pytest.mark.parametrize("stated", ['["a", 1, null]', '[["a"], {}]', '["a", "a "]'])
def test_parquet_source_refuses_names_that_are_no_text_or_alike(tmp_path: Path, stated: str) -> None:
    write(tmp_path / "x.parquet", {"image": cells(1), "label": [0]}, {"classes": stated})
    with pytest.raises(DataError, match=r"is no text|differ only by"):
        open_source(tmp_path).spaces()


@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.list_(pa.int32())])
def test_parquet_source_refuses_structs_whose_bytes_are_none(tmp_path: Path, kind: pa.DataType) -> None:
    cell = {"string": "text", "int64": 10**15}.get(str(kind), [300])
    image = pa.array([{"bytes": cell, "path": "a.png"}], pa.struct([("bytes", kind), ("path", pa.string())]))
    write(tmp_path / "x.parquet", {"image": image})
    with pytest.raises(ConfigError, match=r"column 'image' is struct<bytes: .*, not binary or struct<bytes, path>"):
        list(open_source(tmp_path).records())


@pytest.mark.parametrize("column", ["image", "label", "split"])
def test_parquet_source_refuses_a_column_that_is_there_twice(tmp_path: Path, column: str) -> None:
    columns = {"image": cells(1), "label": pa.array(["a"]), "split": pa.array(["train"])}
    names = [*columns, column]
    pq.write_table(pa.Table.from_arrays([columns[name] for name in names], names), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=rf"there are 2 columns '{column}'; rename one"):
        list(open_source(tmp_path).records())


def test_parquet_source_refuses_files_with_different_classes(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": cells(1), "label": [0]}, PLAIN)
    write(tmp_path / "test.parquet", {"image": cells(1), "label": [0]}, {"classes": '["dog", "cat"]'})
    with pytest.raises(DataError, match="name different classes"):
        open_source(tmp_path).spaces()


def test_parquet_source_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"path: there is no path {tmp_path}/none"):
        open_source(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no .parquet files in"):
        open_source(tmp_path)
    write(tmp_path / "x.parquet", {"image": cells(1)})
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"x.parquet: not a readable Parquet file"):
        list(open_source(tmp_path).records())
