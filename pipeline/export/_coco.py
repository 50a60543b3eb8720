"""Annotation files of COCO's JSON, written image by image: for the forms `coco`, `panoptic` and `hf`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.export import BaseWriter, ExportSample
from pipeline.stores.labels import Value
from pipeline.stores.skeleton import Skeleton

_json = json.JSONEncoder(allow_nan=False).encode


def category(number: int, name: str) -> dict[str, Any]:
    """Return a class as a category."""
    return {"id": number, "name": name, "supercategory": name}


def keypoint_names(skeleton: Skeleton) -> dict[str, Any]:
    """Return what a category states of its keypoints: names, and pairs that count from 1."""
    return {"keypoints": list(skeleton.points), "skeleton": [[one + 1, other + 1] for one, other in skeleton.edges]}


def keypoint_triples(value: Value) -> list[list[float]]:
    """Return of each object of a label of keypoints x, y and visibility of each point in turn."""
    triples = np.concatenate([value["keypoints"], value["visibility"][..., None]], axis=2).astype(np.float64)
    return [[part for x, y, seen in points for part in (x, y, int(seen))] for points in triples.tolist()]


class AnnotationFile:
    """A JSON file being written; annotations are collected in a temporary file because they follow all images."""

    def __init__(self, path: Path, categories: Sequence[Mapping[str, Any]], writer: BaseWriter) -> None:
        # both are closed by the writer
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
        temporary = tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent)  # noqa: SIM115
        self._file, self._temporary = writer.files.enter_context(file), writer.files.enter_context(temporary)
        self._images = self._annotations = 0
        self._file.write(f'{{"info": {{}}, "licenses": [], "categories": {_json(categories)}, "images": [')

    def add(self, sample: ExportSample, annotations: Sequence[Mapping[str, Any]], origin: Mapping[str, str]) -> None:
        """Write an image, and its annotations, to which ids are given. `origin` is added to all of them."""
        self._images += 1
        width, height = sample.size
        image = {"id": self._images, "file_name": sample.file_name, "width": width, "height": height}
        self._file.write((",\n" if self._images > 1 else "\n") + _json({**image, **sample.about(), **origin}))
        for annotation in annotations:
            self._annotations += 1
            entry = {"id": self._annotations, "image_id": self._images, **annotation, **origin}
            self._temporary.write((",\n" if self._annotations > 1 else "\n") + _json(entry))

    def finish(self) -> None:
        """Write the annotations behind the images."""
        self._file.write('\n], "annotations": [')
        self._temporary.seek(0)
        shutil.copyfileobj(self._temporary, self._file)
        self._file.write("\n]}\n")
