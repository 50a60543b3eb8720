"""Parquet with images and labels in columns, as `datasets.load_dataset` reads it, types included.

    data/train-00000-of-00004.parquet       image, key, source, width, height, and the columns of every head

| task | columns |
|---|---|
| classification | `<head>_class`, the most probable one, and `<head>_probs` |
| detection | `<head>_objects`: `bbox` (x, y, width, height in pixels), `category`, `score`, lists of one length |
| segmentation | `<head>_classes`, PNG of class ids (the largest is unknown), `<head>_confidence`, PNG (255 = 1) |
| depth, normals, texture | `<head>_<array>`: nested lists of float32, as the task's `label.py` states them |

Images without a label of a head hold null there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipeline.export import BELOW, BaseWriter, ExportSample, distinct
from pipeline.export._png import class_ids
from pipeline.stores.codecs import share_to_byte
from pipeline.stores.labels import Label, Value

ROWS, GROUP_BYTES = 200, 64_000_000
"""Of a row group, whichever comes first: readers load one at a time, and viewers give up above 300 MB."""
FILE_BYTES = 500_000_000
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OBJECTS = pa.struct(
    [
        ("bbox", pa.list_(pa.list_(pa.float64()))),
        ("category", pa.list_(pa.int64())),
        ("score", pa.list_(pa.float32())),
    ]
)
RAW = {"depth": ("depth", 2), "normals": ("normals", 3), "texture": ("responses", 3)}
"""Tasks whose labels are one array of float32: its name, and how many dimensions it has."""
Feature = dict[str, Any]
"""A column's type as `datasets` states it in the schema's metadata."""


class Writer(BaseWriter):
    """Rows are collected until they fill a row group; a file that is large enough is the last one's end."""

    lost = {  # noqa: RUF012 - a constant
        "classification": "",
        "detection": "",
        "segmentation": "",
        "depth": "",
        "normals": "",
        "texture": "",
    }
    why_not = "it has no columns for it yet"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        fields, features = _common(), _common_features()
        for head, label in heads.items():
            for field, feature in _columns(head, label):
                fields.append(field)
                features[field.name] = feature
            self.places[head] = f"the columns {head}_*"
        self._schema = pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})
        self._cells: dict[str, list[pa.Array]] = {field.name: [] for field in fields}
        self._rows = self._bytes = 0
        self._paths: list[Path] = []
        self._file: pq.ParquetWriter | None = None
        (folder / "data").mkdir()

    def add(self, sample: ExportSample) -> None:
        row = {
            "image": _picture(sample.data, sample.file_name),
            "key": sample.key,
            "source": sample.source,
            "width": sample.size[0],
            "height": sample.size[1],
        }
        cells = {name: pa.array([value], self._schema.field(name).type) for name, value in row.items()}
        for head, value in sample.values.items():
            cells |= _labels(head, self.heads[head], value)
            if "probs" in value and not value["probs"].any():
                self.leave_out(head, BELOW)
        for field in self._schema:
            cell = cells.get(field.name, pa.nulls(1, field.type))
            self._bytes += cell.nbytes
            self._cells[field.name].append(cell)
        self._rows += 1
        if self._rows >= ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write the rows so far as a row group."""
        if self._file is None:
            self._paths.append(self.folder / "data" / f"train-{len(self._paths):05d}.parquet")
            self._file = self.files.enter_context(pq.ParquetWriter(self._paths[-1], self._schema, compression="zstd"))
        columns = [pa.concat_arrays(cells) for cells in self._cells.values()]
        self._file.write_table(pa.table(columns, self._schema), row_group_size=self._rows)
        self._cells = {name: [] for name in self._cells}
        self._rows = self._bytes = 0
        if self._paths[-1].stat().st_size >= FILE_BYTES:
            self.files.close()
            self._file = None

    def finish(self) -> None:
        """The last rows; and the names say how many files there are, as the hub has it."""
        if self._rows:
            self._flush()
        super().finish()
        for number, path in enumerate(self._paths):
            path.rename(path.with_name(f"train-{number:05d}-of-{len(self._paths):05d}.parquet"))


def _plain(dtype: str) -> Feature:
    return {"dtype": dtype, "_type": "Value"}


def _list_of(feature: Feature, times: int = 1) -> Feature:
    return feature if times == 0 else {"feature": _list_of(feature, times - 1), "_type": "Sequence"}


def _nested(kind: pa.DataType, times: int) -> pa.DataType:
    return kind if times == 0 else pa.list_(_nested(kind, times - 1))


def _common() -> list[pa.Field]:
    numbers = [pa.field(name, pa.int32()) for name in ("width", "height")]
    return [pa.field("image", PICTURE), pa.field("key", pa.string()), pa.field("source", pa.string()), *numbers]


def _common_features() -> dict[str, Feature]:
    size = {"width": _plain("int32"), "height": _plain("int32")}
    return {"image": {"_type": "Image"}, "key": _plain("string"), "source": _plain("string"), **size}


def _columns(head: str, label: Label) -> list[tuple[pa.Field, Feature]]:
    """The columns of a head, each with its type for `datasets`."""
    classes: Feature = {"names": distinct(label.space.classes), "_type": "ClassLabel"}
    task = label.space.task
    if task == "classification":
        probs = (pa.field(f"{head}_probs", pa.list_(pa.float32())), _list_of(_plain("float32")))
        return [(pa.field(f"{head}_class", pa.int64()), classes), probs]
    if task == "detection":
        objects = {"bbox": _list_of(_plain("float64"), 2), "category": _list_of(classes)}
        return [(pa.field(f"{head}_objects", OBJECTS), {**objects, "score": _list_of(_plain("float32"))})]
    if task == "segmentation":
        return [(pa.field(f"{head}_{name}", PICTURE), {"_type": "Image"}) for name in ("classes", "confidence")]
    name, dimensions = RAW[task]
    kind = _nested(pa.float32(), dimensions)
    return [(pa.field(f"{head}_{name}", kind), _list_of(_plain("float32"), dimensions))]


def _labels(head: str, label: Label, value: Value) -> dict[str, pa.Array]:
    """A label's columns, each an array of one row."""
    task = label.space.task
    if task == "classification":
        return _distribution(head, value["probs"])
    if task == "detection":
        return {f"{head}_objects": pa.array([_objects(value)], OBJECTS)}
    if task == "segmentation":
        ids = class_ids(value["classes"], len(label.space.classes))
        pictures = {"classes": _png(ids), "confidence": _png(share_to_byte(value["confidence"]))}
        return {f"{head}_{name}": pa.array([_picture(png, None)], PICTURE) for name, png in pictures.items()}
    name, _ = RAW[task]
    return {f"{head}_{name}": _one_row(value[name].astype(np.float32))}


def _distribution(head: str, probs: NDArray[np.float32]) -> dict[str, pa.Array]:
    """Below the threshold, no class is known."""
    top = int(probs.argmax()) if probs.any() else None
    return {f"{head}_class": pa.array([top], pa.int64()), f"{head}_probs": _one_row(probs)}


def _objects(value: Value) -> dict[str, Any]:
    boxes = value["boxes"].astype(np.float64)
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return {"bbox": sides.tolist(), "category": value["classes"].tolist(), "score": value["scores"].tolist()}


def _one_row(array: NDArray[Any]) -> pa.Array:
    """An array of one row that holds `array` as nested lists, made without an object per number."""
    nested = pa.array(np.ascontiguousarray(array).ravel())
    for side in reversed(array.shape):
        nested = pa.ListArray.from_arrays(np.arange(0, len(nested) + 1, side, dtype=np.int32), nested)
    return nested


def _picture(data: bytes, name: str | None) -> dict[str, Any]:
    return {"bytes": data, "path": name}


def _png(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
