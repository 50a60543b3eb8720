"""Hugging Face datasets: Parquet with images, labels and their types, for `datasets.load_dataset`.

    data/train-00000-of-00004.parquet       image, key, source, width, height, and the columns of every head

| task | columns |
|---|---|
| classification | `<head>_class`, the most probable class, and `<head>_probs` |
| detection | `<head>_objects`: lists of one length, `bbox` (x, y, width, height in pixels), `category`, `score` |
| segmentation | `<head>_classes`, PNG of class ids (the largest is unknown), `<head>_confidence`, PNG (255 = 1) |
| depth, normals, texture | `<head>_<array>`: nested lists of float32, as the task's `label.py` states them |

Columns of a head are null for an image without its label.
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

from pipeline.export import BELOW_THRESHOLD, BaseWriter, ExportSample, unique_names
from pipeline.export._png import to_class_ids
from pipeline.stores.codecs import share_to_byte
from pipeline.stores.labels import Label, Value

ROWS, GROUP_BYTES = 200, 64_000_000
"""Limits of a row group, whichever is reached first: readers load one at a time, and viewers fail above 300 MB."""
FILE_BYTES = 500_000_000
"""Size of a file at which the next one begins."""
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OBJECTS = pa.struct(
    [
        ("bbox", pa.list_(pa.list_(pa.float64()))),
        ("category", pa.list_(pa.int64())),
        ("score", pa.list_(pa.float32())),
    ]
)
ARRAYS = {"depth": ("depth", 2), "normals": ("normals", 3), "texture": ("responses", 3)}
"""Name and number of dimensions of the float32 array that is the label of a task."""
Feature = dict[str, Any]
"""A column's type as `datasets` states it in the schema's metadata."""
Column = tuple[pa.Field, Feature]


class Writer(BaseWriter):
    """Collects rows until they fill a row group, and begins a new file when one is large enough."""

    supported = dict.fromkeys(("classification", "detection", "segmentation", *ARRAYS), "")
    unsupported_reason = "it has no columns for this task"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        self.locations = {head: f"the columns {head}_*" for head in heads}
        columns = [*_image_columns(), *(column for head, label in heads.items() for column in _columns(head, label))]
        features = {field.name: feature for field, feature in columns}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        self._schema = pa.schema([field for field, _ in columns], metadata)
        self._cells: dict[str, list[pa.Array]] = {name: [] for name in self._schema.names}
        self._rows = self._bytes = 0
        self._paths: list[Path] = []
        self._file: pq.ParquetWriter | None = None
        (folder / "data").mkdir()

    def add(self, sample: ExportSample) -> None:
        row = {
            "image": {"bytes": sample.data, "path": sample.file_name},
            "key": sample.key,
            "source": sample.source,
            "width": sample.size[0],
            "height": sample.size[1],
        }
        cells = {name: pa.array([value], self._schema.field(name).type) for name, value in row.items()}
        for head, value in sample.values.items():
            cells |= _label_cells(head, self.heads[head], value)
            if "probs" in value and not value["probs"].any():
                self.leave_out(head, BELOW_THRESHOLD)
        for field in self._schema:
            cell = cells.get(field.name, pa.nulls(1, field.type))
            self._bytes += cell.nbytes
            self._cells[field.name].append(cell)
        self._rows += 1
        if self._rows >= ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write the collected rows as a row group."""
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
        """Write the last rows, and rename the files to tell how many there are, as on the Hugging Face hub."""
        if self._rows:
            self._flush()
        super().finish()
        for number, path in enumerate(self._paths):
            path.rename(path.with_name(f"train-{number:05d}-of-{len(self._paths):05d}.parquet"))


def _value_feature(dtype: str) -> Feature:
    return {"dtype": dtype, "_type": "Value"}


def _sequence_feature(feature: Feature, depth: int = 1) -> Feature:
    return feature if depth == 0 else {"feature": _sequence_feature(feature, depth - 1), "_type": "Sequence"}


def _nested_list(dtype: pa.DataType, depth: int) -> pa.DataType:
    return dtype if depth == 0 else pa.list_(_nested_list(dtype, depth - 1))


def _image_columns() -> list[Column]:
    texts = [(pa.field(name, pa.string()), _value_feature("string")) for name in ("key", "source")]
    numbers = [(pa.field(name, pa.int32()), _value_feature("int32")) for name in ("width", "height")]
    return [(pa.field("image", IMAGE), {"_type": "Image"}), *texts, *numbers]


def _columns(head: str, label: Label) -> list[Column]:
    classes: Feature = {"names": unique_names(label.space.classes), "_type": "ClassLabel"}
    task = label.space.task
    if task == "classification":
        probs = (pa.field(f"{head}_probs", pa.list_(pa.float32())), _sequence_feature(_value_feature("float32")))
        return [(pa.field(f"{head}_class", pa.int64()), classes), probs]
    if task == "detection":
        boxes = {"bbox": _sequence_feature(_value_feature("float64"), 2), "category": _sequence_feature(classes)}
        objects = {**boxes, "score": _sequence_feature(_value_feature("float32"))}
        return [(pa.field(f"{head}_objects", OBJECTS), objects)]
    if task == "segmentation":
        return [(pa.field(f"{head}_{name}", IMAGE), {"_type": "Image"}) for name in ("classes", "confidence")]
    name, dimensions = ARRAYS[task]
    feature = _sequence_feature(_value_feature("float32"), dimensions)
    return [(pa.field(f"{head}_{name}", _nested_list(pa.float32(), dimensions)), feature)]


def _label_cells(head: str, label: Label, value: Value) -> dict[str, pa.Array]:
    """Return a label's columns, each an array of one row."""
    task = label.space.task
    if task == "classification":
        probs = value["probs"]
        top = int(probs.argmax()) if probs.any() else None  # no class reaches the threshold
        return {f"{head}_class": pa.array([top], pa.int64()), f"{head}_probs": _one_row(probs)}
    if task == "detection":
        return {f"{head}_objects": pa.array([_objects(value)], OBJECTS)}
    if task == "segmentation":
        ids = to_class_ids(value["classes"], len(label.space.classes))
        files = {"classes": _png(ids), "confidence": _png(share_to_byte(value["confidence"]))}
        return {f"{head}_{name}": pa.array([{"bytes": png, "path": None}], IMAGE) for name, png in files.items()}
    name, _ = ARRAYS[task]
    return {f"{head}_{name}": _one_row(value[name].astype(np.float32))}


def _objects(value: Value) -> dict[str, Any]:
    boxes = value["boxes"].astype(np.float64)
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return {"bbox": sides.tolist(), "category": value["classes"].tolist(), "score": value["scores"].tolist()}


def _one_row(array: NDArray[Any]) -> pa.Array:
    """Return a column of one row that holds `array` as nested lists, without making a Python object per number."""
    nested = pa.array(np.ascontiguousarray(array).ravel())
    for side in reversed(array.shape):
        nested = pa.ListArray.from_arrays(np.arange(0, len(nested) + 1, side, dtype=np.int32), nested)
    return nested


def _png(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
