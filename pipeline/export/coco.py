"""COCO's JSON: boxes as `instances_train.json`, masks by class as `stuff_train.json`, and the images beside.

One file per head; heads that share a task have a file each, named after the head. Category ids count from 1 in the
order of the classes. An image that a file names without annotations is one without things in it; an image without a
label is not named. `kind: coco` of a recipe reads the folder of a single detection head as it is.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle

from pipeline.export import BaseWriter, ExportSample, at_size
from pipeline.export._png import IGNORE
from pipeline.stores.labels import Label, Value

IMAGES = "images"
PREFIX = {"detection": "instances", "segmentation": "stuff"}


class Writer(BaseWriter):
    """Annotations are `bbox` [x, y, width, height] in pixels with `score`, or `segmentation` in compressed RLE at the
    image's size, one per class that is there; pixels of no annotation are unknown.
    """

    lost = {  # noqa: RUF012 - a constant
        "detection": "",
        "segmentation": "the confidence of each pixel; an annotation's score is their mean",
    }
    why_not = "its annotations are boxes and masks of classes"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        (folder / IMAGES).mkdir()
        self._written: dict[str, _Annotated] = {}
        for head, label in heads.items():
            prefix = PREFIX[label.space.task]
            self.places[head] = self.named(head, f"{prefix}_train.json", f"{prefix}_{{}}.json")
            self._written[head] = _Annotated(folder / self.places[head], label.space.classes, self)

    def add(self, sample: ExportSample) -> None:
        (self.folder / IMAGES / sample.file_name).write_bytes(sample.data)
        for head, value in sample.values.items():
            task = self.heads[head].space.task
            annotations = _boxes(value) if task == "detection" else _masks(value, sample.size)
            self._written[head].add(sample, annotations)
            self.counts[head]["annotations"] += len(annotations)

    def finish(self) -> None:
        for written in self._written.values():
            written.finish()
        super().finish()


class _Annotated:
    """One JSON file in the making: images as they come, annotations in a nameless file until the end."""

    def __init__(self, path: Path, classes: tuple[str, ...], writer: BaseWriter) -> None:
        # both are closed by the writer
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
        rest = tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent)  # noqa: SIM115
        self._file, self._rest = writer.files.enter_context(file), writer.files.enter_context(rest)
        self._images = self._annotations = 0
        categories = [{"id": i, "name": name, "supercategory": name} for i, name in enumerate(classes, start=1)]
        self._file.write(f'{{"info": {{}}, "licenses": [], "categories": {_json(categories)}, "images": [')

    def add(self, sample: ExportSample, annotations: list[dict[str, Any]]) -> None:
        self._images += 1
        width, height = sample.size
        image = {"id": self._images, "file_name": sample.file_name, "width": width, "height": height}
        self._file.write((",\n" if self._images > 1 else "\n") + _json({**image, "source": sample.source}))
        for annotation in annotations:
            self._annotations += 1
            whole = {"id": self._annotations, "image_id": self._images, "iscrowd": 0, **annotation}
            self._rest.write((",\n" if self._annotations > 1 else "\n") + _json(whole))

    def finish(self) -> None:
        self._file.write('\n], "annotations": [')
        self._rest.seek(0)
        shutil.copyfileobj(self._rest, self._file)
        self._file.write("\n]}\n")


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _boxes(value: Value) -> list[dict[str, Any]]:
    """In float64, so that x + width is again the right edge that is stored."""
    found = []
    for box, score, name in zip(value["boxes"].astype(np.float64), value["scores"], value["classes"], strict=True):
        x, y, width, height = float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])
        category = {"category_id": int(name) + 1, "bbox": [x, y, width, height], "area": width * height}
        found.append({**category, "score": float(score)})
    return found


def _masks(value: Value, size: tuple[int, int]) -> list[dict[str, Any]]:
    classes, confidence = at_size(value["classes"], size, IGNORE), at_size(value["confidence"], size, 0.0)
    found = []
    for name in np.unique(classes[classes != IGNORE]):
        mask = classes == name
        encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
        segmentation = {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        bbox = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
        shape = {"segmentation": segmentation, "area": int(mask.sum()), "bbox": bbox}
        found.append({"category_id": int(name) + 1, **shape, "score": float(confidence[mask].mean())})
    return found
