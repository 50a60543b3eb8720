"""The label store: rows that line up with the images, complete files only, readable without this project."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tasks
from pipeline.errors import DataError
from pipeline.stores.label_writer import LabelWriter, store_metadata
from pipeline.stores.labels import ROW_GROUP, LabelShard, LabelSpace, Value, read_metadata
from tests.disk import stored

SPACE = LabelSpace("detection", ("cup", "spoon"))
LABEL = tasks.label(SPACE)


def boxes(*scores: float) -> Value:
    count = len(scores)
    corners = np.arange(4 * count).reshape(count, 4) + np.array([0, 0, 10, 10])
    return {
        "boxes": corners.astype(np.float32),
        "scores": np.array(scores, np.float32),
        "classes": np.arange(count, dtype=np.int32) % 2,
        "size": np.array([64, 48], np.int32),
    }


def write(path: Path, count: int = 3) -> Path:
    writer = LabelWriter(path, LABEL, store_metadata(LABEL, "teacher", "shard-sha"))
    for number in range(count):
        writer.add(f"key{number}", LABEL.encode(boxes(*[0.3 + 0.1 * n for n in range(number % 5)])))
    writer.add("key-without", None, "none", "the set has no label for it")
    writer.add("key-failed", None, "failed", "truncated after 5 bytes")
    writer.close()
    return path


def test_label_shard_returns_what_label_writer_wrote(tmp_path: Path) -> None:
    shard = LabelShard(stored(write(tmp_path / "labels" / "s.parquet")), LABEL)
    assert shard.keys == ["key0", "key1", "key2", "key-without", "key-failed"]
    assert shard.table.num_rows == 5
    value = shard.value(2)
    assert value is not None
    np.testing.assert_array_equal(value["boxes"], boxes(0.3, 0.4)["boxes"])
    np.testing.assert_array_equal(value["scores"], np.array([0.3, 0.4], np.float32))
    assert shard.value(3) is None
    assert shard.value(4) is None
    assert shard.row(4) is None


def test_label_shard_tells_no_boxes_from_no_label(tmp_path: Path) -> None:
    shard = LabelShard(stored(write(tmp_path / "s.parquet")), LABEL)
    value = shard.value(0)
    assert value is not None
    assert value["boxes"].shape == (0, 4)
    assert value["size"].tolist() == [64, 48]


def test_label_shard_value_applies_the_threshold(tmp_path: Path) -> None:
    shard = LabelShard(stored(write(tmp_path / "s.parquet")), LABEL)
    kept = shard.value(2, 0.4)
    assert kept is not None
    assert kept["scores"].tolist() == [np.float32(0.4)]


def test_label_shard_rows_are_in_order_across_row_groups(tmp_path: Path) -> None:
    shard = LabelShard(stored(write(tmp_path / "s.parquet", ROW_GROUP + 44)), LABEL)
    assert pq.ParquetFile(Path(shard.file.path)).metadata.num_row_groups == 2
    assert [row["key"] for row in shard.rows()] == shard.keys
    assert shard.value(ROW_GROUP + 3)["scores"].size == (ROW_GROUP + 3) % 5  # type: ignore[index]


def test_store_metadata_is_in_the_label_file(tmp_path: Path) -> None:
    about = json.loads(pq.read_schema(write(tmp_path / "s.parquet")).metadata[b"must"])
    assert about == {
        "schema_version": 2,
        "calibration": None,
        "space": {"task": "detection", "classes": ["cup", "spoon"], "scale": "metric"},
        "maker": "teacher",
        "image_shard": "shard-sha",
    }
    assert LabelSpace.from_json(about["space"]) == SPACE
    field = pq.read_schema(tmp_path / "s.parquet").field("boxes")
    assert b"pixels" in field.metadata[b"about"]


def test_label_writer_writes_scalar_columns_for_sql(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = write(tmp_path / "s.parquet", 10)
    query = f"select key, count, count_50 from '{path}' where status = 'ok' and count >= 4 order by key"
    assert duckdb.sql(query).fetchall() == [("key4", 4, 2), ("key9", 4, 2)]
    query = f"select status, any_value(reason), avg(confidence) from '{path}' group by status order by status"
    rows = duckdb.sql(query).fetchall()
    assert [row[:2] for row in rows] == [
        ("failed", "truncated after 5 bytes"),
        ("none", "the set has no label for it"),
        ("ok", None),
    ]
    assert rows[0][2] is None


def test_label_writer_writes_plain_parquet(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "s.parquet"), columns=["key", "scores", "width"])
    assert table.to_pylist()[1] == {"key": "key1", "scores": [pytest.approx(0.3)], "width": 64}
    assert table.schema.field("scores").type == pa.list_(pa.float32())


def test_label_writer_shows_nothing_before_close(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    writer = LabelWriter(path, LABEL, store_metadata(LABEL, "teacher", "s"))
    for number in range(ROW_GROUP + 1):  # a row group is on disk by now
        writer.add(f"key{number}", LABEL.encode(boxes(0.5)))
    assert not path.exists()
    assert not list(tmp_path.glob("*.parquet"))
    (part,) = tmp_path.iterdir()
    with pytest.raises(DataError, match="not a readable label shard"):
        LabelShard(stored(part), LABEL)
    writer.close()
    assert list(tmp_path.iterdir()) == [path]


def test_label_writer_discard_leaves_nothing_and_keeps_a_closed_file(tmp_path: Path) -> None:
    writer = LabelWriter(tmp_path / "s.parquet", LABEL, store_metadata(LABEL, "teacher", "s"))
    writer.add("key", LABEL.encode(boxes(0.5)))
    writer.discard()
    assert not list(tmp_path.iterdir())
    whole = LabelWriter(tmp_path / "t.parquet", LABEL, store_metadata(LABEL, "teacher", "s"))
    whole.close()
    whole.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]
    assert LabelShard(stored(tmp_path / "t.parquet"), LABEL).keys == []


def test_label_writer_is_deterministic(tmp_path: Path) -> None:
    assert write(tmp_path / "a" / "s.parquet").read_bytes() == write(tmp_path / "b" / "s.parquet").read_bytes()


def test_label_shard_damaged_or_of_another_version_is_a_data_error(tmp_path: Path) -> None:
    path = write(tmp_path / "s.parquet")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"must": json.dumps({"schema_version": 7})}), path)
    with pytest.raises(DataError, match=r"label schema version 7; this version reads 2"):
        LabelShard(stored(path), LABEL)
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(DataError, match="label schema version None"):
        LabelShard(stored(path), LABEL)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"s\.parquet: not a readable label shard.*Delete it and run again"):
        LabelShard(stored(path), LABEL)


@pytest.mark.parametrize("key", ["space", "calibration"])
@pytest.mark.parametrize(
    "value", [5, "text", [], {}, {"task": "depth", "classes": "abc", "scale": "metric"}, {"map": {"kind": 1}}]
)
def test_read_metadata_names_a_file_whose_fields_are_damaged(key: str, value: object) -> None:
    fields = store_metadata(LABEL, "masks", "0" * 64)
    assert read_metadata(pa.schema([], {"must": json.dumps(fields)}), "s.parquet") == fields
    with pytest.raises(DataError, match=r"^s\.parquet: its metadata is damaged .*Delete it and run again"):
        read_metadata(pa.schema([], {"must": json.dumps(fields | {key: value})}), "s.parquet")


def test_label_shard_value_names_file_and_key_of_a_damaged_label(tmp_path: Path) -> None:
    label = tasks.label(LabelSpace("depth"))
    row = label.encode({"depth": np.ones((4, 4), np.float32)})
    writer = LabelWriter(tmp_path / "s.parquet", label, store_metadata(label, "me", "0" * 64))
    for key, damage in (("whole", b""), ("hurt", b"?")):
        writer.add(key, {**row, "depth": row["depth"][:-1] + damage if damage else row["depth"]})
    writer.close()
    shard = LabelShard(stored(tmp_path / "s.parquet"), label)
    assert shard.value(0) is not None
    with pytest.raises(DataError, match=r"s\.parquet: the label of hurt is damaged"):
        shard.value(1)


def test_label_writer_makes_changed_values_damage(tmp_path: Path) -> None:
    """Whatever byte of a page is changed, a label file gives the values that were written, or none."""
    path = write(tmp_path / "s.parquet", 40)
    content, expected = path.read_bytes(), LabelShard(stored(path), LABEL).table
    pages = pq.read_metadata(path).row_group(0)
    spans = [pages.column(number) for number in range(pages.num_columns)]
    refused = 0
    for span in spans:
        begin = span.data_page_offset if span.dictionary_page_offset is None else span.dictionary_page_offset
        for place in range(begin, begin + span.total_compressed_size, 5):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            try:
                assert LabelShard(stored(path), LABEL).table.equals(expected), f"byte {place}"
            except DataError:
                refused += 1
    assert refused > len(spans)
