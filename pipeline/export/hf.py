"""Hugging Face datasets: Parquet with images, labels and their types, for `datasets.load_dataset`.

    data/train-00000-of-00004.parquet       image, set, source, key, width, height, and the columns of every head

Every head has `<head>_origin` and `<head>_origin_name`, who made the label. Held-out images are the split `validation`.

| task | columns |
|---|---|
| classification | `<head>_class`, the most probable class, and `<head>_probs` |
| multilabel | `<head>_classes`, those of a probability of 0.5 or more, and `<head>_probs`, NaN where unknown |
| detection | `<head>_objects`: lists of one length, `bbox` (x, y, width, height in pixels), `category`, `score` |
| masks | `<head>_objects`, with `segmentation`, COCO's compressed run lengths, and `area` in pixels |
| keypoints | `<head>_objects`, with `keypoints` (x, y and visibility of each in turn), `keypoint_scores`, and `area` |
| segmentation | `<head>_classes`, PNG of class ids (the largest is unknown), `<head>_confidence`, PNG (255 = 1) |
| all others | `<head>_<array>`: nested lists of float32, as the task's `label.py` states them |

Columns of a head are null for an image without its label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.export import BELOW_THRESHOLD, TRAIN, VAL, BaseWriter, ExportSample, unique_names
from pipeline.export._coco import keypoint_triples
from pipeline.export._png import png, to_class_ids
from pipeline.storage.parquet import parquet_writer
from pipeline.stores.codecs import share_to_byte
from pipeline.stores.labels import PRESENT, Label, LabelOrigin, Value
from pipeline.stores.rle import mask_area

ROWS, GROUP_BYTES = 200, 64_000_000
"""Limits of a row group, whichever is reached first: readers load one at a time, and viewers fail above 300 MB."""
FILE_BYTES = 500_000_000
"""Size of a file at which the next one begins."""
SPLIT_NAMES = {TRAIN: "train", VAL: "validation"}
"""Names of the splits, as `datasets` calls them."""
ARRAYS = {
    "depth": ("depth", 2),
    "normals": ("normals", 3),
    "texture": ("responses", 3),
    "features": ("vector", 1),
    "feature_maps": ("map", 3),
    "regression": ("values", 3),
}
"""Name and number of dimensions of the float32 array that is the label of a task."""
OBJECTS = ("detection", "masks", "keypoints")
"""Tasks whose labels are lists of objects."""
Feature = dict[str, Any]
"""A column's type as `datasets` states it in the schema's metadata."""
IMAGE: Feature = {"_type": "Image"}


class Writer(BaseWriter):
    """Collects rows until they fill a row group, and begins a new file when one is large enough."""

    supported = dict.fromkeys(("classification", "multilabel", *OBJECTS, "segmentation", *ARRAYS), "")
    unsupported_reason = "it has no columns for this task"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        self.locations = {head: f"the columns {head}_*" for head in heads}
        features = {"image": IMAGE, **{name: _value("string") for name in ("set", "source", "key")}}
        features |= {"width": _value("int32"), "height": _value("int32")}
        for head, label in heads.items():
            columns = {**_label_features(label), **dict.fromkeys(LabelOrigin._fields, _value("string"))}
            features |= {f"{head}_{name}": feature for name, feature in columns.items()}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        self._schema = pa.schema([(name, _arrow_type(feature)) for name, feature in features.items()], metadata)
        self._cells: dict[str, list[pa.Array]] = {name: [] for name in self._schema.names}
        self._rows = self._bytes = 0
        self._paths: dict[str, list[Path]] = {}
        self._split = TRAIN
        self._file: pq.ParquetWriter | None = None
        (folder / "data").mkdir()

    def add(self, sample: ExportSample) -> None:
        if sample.split != self._split:
            self._begin_split(sample.split)
        row: dict[str, Any] = {"image": {"bytes": sample.data, "path": sample.file_name}, **sample.about()}
        row["width"], row["height"] = sample.size
        for head, value in sample.values.items():
            cells = {**_label_cells(self.heads[head], value), **sample.origin(head)}
            row |= {f"{head}_{name}": cell for name, cell in cells.items()}
            if self.heads[head].space.task == "classification" and not value["probs"].any():
                self.leave_out(head, BELOW_THRESHOLD)
        for field in self._schema:
            cell = row.get(field.name, pa.nulls(1, field.type))
            if not isinstance(cell, pa.Array):
                cell = pa.array([cell], field.type)
            self._bytes += cell.nbytes
            self._cells[field.name].append(cell)
        self._rows += 1
        if self._rows >= ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _begin_split(self, split: str) -> None:
        """Write the last rows of a split; the first ones of the next begin a new file."""
        if self._rows:
            self._flush()
        self.files.close()
        self._split, self._file = split, None

    def _flush(self) -> None:
        """Write the collected rows as a row group."""
        paths = self._paths.setdefault(SPLIT_NAMES[self._split], [])
        if self._file is None:
            paths.append(self.folder / "data" / f"{SPLIT_NAMES[self._split]}-{len(paths):05d}.parquet")
            self._file = self.files.enter_context(parquet_writer(paths[-1], self._schema, compression="zstd"))
        columns = [pa.concat_arrays(cells) for cells in self._cells.values()]
        self._file.write_table(pa.table(columns, self._schema), row_group_size=self._rows)
        self._cells = {name: [] for name in self._cells}
        self._rows = self._bytes = 0
        if paths[-1].stat().st_size >= FILE_BYTES:
            self.files.close()
            self._file = None

    def finish(self) -> None:
        """Write the last rows, and rename the files to tell how many there are, as on the Hugging Face hub."""
        self._begin_split(TRAIN)
        for split, paths in self._paths.items():
            for number, path in enumerate(paths):
                path.rename(path.with_name(f"{split}-{number:05d}-of-{len(paths):05d}.parquet"))


def _value(dtype: str) -> Feature:
    return {"dtype": dtype, "_type": "Value"}


def _sequence(feature: Feature, depth: int = 1) -> Feature:
    return feature if depth == 0 else {"feature": _sequence(feature, depth - 1), "_type": "Sequence"}


def _arrow_type(feature: Feature) -> pa.DataType:
    """Return the type of a column in Parquet; a feature without a type of its own is a struct."""
    match feature.get("_type"):
        case "Image":
            return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        case "Sequence":
            return pa.list_(_arrow_type(feature["feature"]))
        case "ClassLabel":
            return pa.int64()
        case "Value":
            return pa.type_for_alias(feature["dtype"])
    return pa.struct([(name, _arrow_type(each)) for name, each in feature.items()])


def _label_features(label: Label) -> dict[str, Feature]:
    """Return the columns of a head, without its name."""
    classes: Feature = {"names": unique_names(label.space.classes), "_type": "ClassLabel"}
    task, score = label.space.task, _value("float32")
    if task == "classification":
        return {"class": classes, "probs": _sequence(score)}
    if task == "multilabel":
        return {"classes": _sequence(classes), "probs": _sequence(score)}
    if task in OBJECTS:
        numbers = _sequence(_value("float64"), 2)
        objects = {"bbox": numbers, "category": _sequence(classes), "score": _sequence(score)}
        more = {
            "detection": {},
            "masks": {"segmentation": _sequence(_value("string")), "area": _sequence(_value("int64"))},
            "keypoints": {"keypoints": numbers, "keypoint_scores": numbers, "area": _sequence(_value("float64"))},
        }
        return {"objects": {**objects, **more[task]}}
    if task == "segmentation":
        return {"classes": IMAGE, "confidence": IMAGE}
    name, dimensions = ARRAYS[task]
    return {name: _sequence(score, dimensions)}


def _label_cells(label: Label, value: Value) -> dict[str, Any]:
    """Return a label by column of `_label_features`, each a Python object or an array of one row."""
    task = label.space.task
    if task == "classification":
        probs = value["probs"]
        top = int(probs.argmax()) if probs.any() else None  # no class reaches the threshold
        return {"class": top, "probs": _one_row(probs)}
    if task == "multilabel":
        return {"classes": np.flatnonzero(value["probs"] >= PRESENT).tolist(), "probs": _one_row(value["probs"])}
    if task in OBJECTS:
        return {"objects": _objects(value)}
    if task == "segmentation":
        files = {"classes": to_class_ids(value["classes"], len(label.space.classes))}
        files["confidence"] = share_to_byte(value["confidence"])
        return {name: {"bytes": png(pixels), "path": None} for name, pixels in files.items()}
    name, _ = ARRAYS[task]
    return {name: _one_row(value[name].astype(np.float32))}


def _objects(value: Value) -> dict[str, list[Any]]:
    """Return the boxes of a label, and its masks or keypoints if it has them, as lists of one length."""
    boxes = value["boxes"].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    objects = {"bbox": boxes.tolist(), "category": value["classes"].tolist(), "score": value["scores"].tolist()}
    if "keypoints" in value:
        points = {"keypoints": keypoint_triples(value), "keypoint_scores": value["keypoint_scores"].tolist()}
        return {**objects, **points, "area": value["areas"].tolist()}
    if "masks" not in value:
        return objects
    masks, (width, height) = value["masks"].tolist(), value["size"].tolist()
    areas = [mask_area(mask, (width, height)) for mask in masks]
    return {**objects, "segmentation": [mask.decode("ascii") for mask in masks], "area": areas}


def _one_row(array: NDArray[Any]) -> pa.Array:
    """Return a column of one row that holds `array` as nested lists, without making a Python object per number."""
    nested = pa.array(np.ascontiguousarray(array).ravel())
    for side in reversed(array.shape):
        nested = pa.ListArray.from_arrays(np.arange(0, len(nested) + 1, side, dtype=np.int32), nested)
    return nested
