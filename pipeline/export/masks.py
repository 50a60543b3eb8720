"""Images and PNG files of the same name and size: class ids, depth in millimetres, normals as RGB.

    images/train/<name>.jpg     masks/train/<name>.png and classes.json     depth/train/<name>.png     normals/...

`kind: masks`, `kind: depth` (with `rgb: images`) and `kind: normals` of a recipe read the folder as it is, or `kind:
rasters` all of it. Heads of the same task have a folder each, `masks_<head>`. Held-out images lie in `val` instead of
`train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.export import TRAIN, BaseWriter, ExportSample, to_image_size
from pipeline.export._png import depth_pixels, normals_to_rgb, png, to_class_ids, unknown_id
from pipeline.steps.artifact import write_json
from pipeline.stores.labels import Label, Value

FOLDERS = {"segmentation": "masks", "depth": "depth", "normals": "normals"}


class Writer(BaseWriter):
    """Writes masks, depth and normals.

    Masks hold class ids from 0, of 8 or 16 bits, the largest for unknown; `classes.json` states the names and that id.
    Depth is in 16 bits as `depth_pixels` describes. Normals are 8-bit RGB, round((n + 1) * 127.5): red grows to the
    right, green upwards, blue towards the camera; black is unknown.
    """

    supported = {  # noqa: RUF012 - a constant
        "segmentation": "the confidence of each pixel",
        "depth": "up to half a millimetre, and what is farther than 65.535 m; of relative depth the scale",
        "normals": "up to half a degree",
    }
    unsupported_reason = "its labels are rasters of class ids, depth or normals"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        (folder / "images" / TRAIN).mkdir(parents=True)
        for head, label in heads.items():
            name = FOLDERS[label.space.task]
            self.locations[head] = self.name_for(head, name, f"{name}_{{}}")
            (folder / self.locations[head] / TRAIN).mkdir(parents=True)
            if label.space.task == "segmentation":
                classes = dict(enumerate(label.space.classes))
                content = {"classes": classes, "ignore_index": unknown_id(len(classes))}
                write_json(folder / self.name_for(head, "classes.json", "classes_{}.json"), content)

    def add(self, sample: ExportSample) -> None:
        self.write(f"images/{sample.split}/{sample.file_name}", sample.data)
        for head, value in sample.values.items():
            pixels = self._pixels(head, value, sample.size)
            self.write(f"{self.locations[head]}/{sample.split}/{sample.stem}.png", png(pixels))

    def _pixels(self, head: str, value: Value, size: tuple[int, int]) -> NDArray[Any]:
        space = self.heads[head].space
        if space.task == "segmentation":
            return to_class_ids(to_image_size(value["classes"], size), len(space.classes))
        if space.task == "normals":
            return normals_to_rgb(to_image_size(value["normals"], size))
        return depth_pixels(to_image_size(value["depth"], size), space.scale, self.counts[head])
