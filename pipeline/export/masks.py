"""Images and rasters of the same name: class ids, millimetres and directions as PNG, at the image's size.

    images/train/<key>.jpg      masks/train/<key>.png and classes.json      depth/train/<key>.png      normals/...

`kind: masks` and `kind: depth` of a recipe (with `rgb: images, hold_out: 0`) read the folder as it is. Heads that share
a task have a folder each, named after the head, `masks_<head>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from pipeline.export import BaseWriter, ExportSample, at_size
from pipeline.export._png import IGNORE, class_ids, directions, millimetres, shares_of_nearest, unknown_id
from pipeline.steps.artifact import write_json
from pipeline.stores.labels import Label, Value

SPLIT = "train"
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
                about = {"classes": classes, "ignore_index": unknown_id(len(classes))}
                write_json(folder / self.named(head, "classes.json", "classes_{}.json"), about)

    def add(self, sample: ExportSample) -> None:
        (self.folder / "images" / SPLIT / sample.file_name).write_bytes(sample.data)
        for head, value in sample.values.items():
            pixels = self._pixels(head, value, sample.size)
            Image.fromarray(pixels).save(self.folder / self.places[head] / SPLIT / f"{sample.key}.png")

    def _pixels(self, head: str, value: Value, size: tuple[int, int]) -> NDArray[Any]:
        space = self.heads[head].space
        if space.task == "segmentation":
            return class_ids(at_size(value["classes"], size, IGNORE), len(space.classes))
        if space.task == "normals":
            return directions(at_size(value["normals"], size, 0.0))
        depth = at_size(value["depth"], size, 0.0)
        if space.scale == "relative":
            return shares_of_nearest(depth)
        pixels, far = millimetres(depth)
        if far:
            self.counts[head]["pixels farther than 65.535 m, now unknown"] += far
        return pixels
