"""Images and rasters of the same name: class ids, millimetres and directions as PNG, at the image's size.

    images/train/<key>.jpg      masks/train/<key>.png and classes.json      depth/train/<key>.png      normals/...

`kind: masks` and `kind: depth` of a recipe (with `rgb: images, hold_out: 0`) read the folder as it is. Heads that share
a task have a folder each, named after the head, `masks_<head>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.artifacts import write_json
from pipeline.export import BaseWriter, Sample, at_size
from pipeline.labels import Label, Value

SPLIT = "train"
IGNORE = 65535
MOST = 65535
"""The largest number of 16 bits."""
FOLDERS = {"segmentation": "masks", "depth": "depth", "normals": "normals"}


class Writer(BaseWriter):
    """Masks hold class ids from 0, of 8 or 16 bits, the largest for unknown; `classes.json` says both.

    Metric depth is in millimetres, 16 bits, rounded to the nearest (at least 1), 0 = unknown; what is farther than
    65.535 m becomes unknown, and is counted. Relative depth is scaled so that the nearest is 65535. Normals are 8-bit
    RGB, round((n + 1) * 127.5): red grows to the right, green upwards, blue towards the camera; black is unknown.
    """

    lost = {  # noqa: RUF012 - a constant
        "segmentation": "the confidence of each pixel",
        "depth": "up to half a millimetre, and what is farther than 65.535 m; of relative depth the scale",
        "normals": "up to half a degree",
    }
    why_not = "its labels are rasters with one meaning per pixel"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        (folder / "images" / SPLIT).mkdir(parents=True)
        for head, label in heads.items():
            name = FOLDERS[label.space.task]
            self.places[head] = self.named(head, name, f"{name}_{{}}")
            (folder / self.places[head] / SPLIT).mkdir(parents=True)
            if label.space.task == "segmentation":
                classes = dict(enumerate(label.space.classes))
                about = {"classes": classes, "ignore_index": int(np.iinfo(_type(label)).max)}
                write_json(folder / self.named(head, "classes.json", "classes_{}.json"), about)

    def add(self, sample: Sample) -> None:
        (self.folder / "images" / SPLIT / sample.file_name).write_bytes(sample.data)
        for head, value in sample.values.items():
            pixels = self._pixels(head, value, sample.size)
            Image.fromarray(pixels).save(self.folder / self.places[head] / SPLIT / f"{sample.key}.png")

    def _pixels(self, head: str, value: Value, size: tuple[int, int]) -> NDArray[Any]:
        label = self.heads[head]
        if label.space.task == "segmentation":
            classes, kind = at_size(value["classes"], size, IGNORE), _type(label)
            return np.where(classes == IGNORE, np.iinfo(kind).max, classes).astype(kind)
        if label.space.task == "normals":
            normals = at_size(value["normals"], size, 0.0)
            colours = np.rint((normals + 1) * 127.5) * normals.any(axis=-1, keepdims=True)
            return colours.astype(np.uint8)
        depth = at_size(value["depth"], size, 0.0).astype(np.float64)
        return self._millimetres(head, depth) if label.space.scale == "metric" else _relative(depth)

    def _millimetres(self, head: str, depth: NDArray[np.float64]) -> NDArray[np.uint16]:
        known, rounded = depth > 0, np.rint(depth * 1000)
        far = known & (rounded > MOST)
        if far.any():
            self.counts[head]["pixels farther than 65.535 m, now unknown"] += int(far.sum())
        return np.where(known & ~far, np.maximum(rounded, 1), 0).astype(np.uint16)


def _type(label: Label) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if len(label.space.classes) < 255 else np.uint16


def _relative(depth: NDArray[np.float64]) -> NDArray[np.uint16]:
    scaled = np.rint(depth / max(depth.max(), 1e-12) * MOST)
    return np.where(depth > 0, np.maximum(scaled, 1), 0).astype(np.uint16)
