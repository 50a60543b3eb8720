"""YOLO's folders, as Ultralytics reads them, one data set per head, in a folder named after it.

    <head>/data.yaml   images/train/<key>.jpg   labels/train/<key>.txt     detection: class, centre and size, relative
    <head>/train/<class>/<key>.jpg                                         classification: a folder per class

An image without boxes has an empty text; one without a label of the head is not in its folder. Class folders are
numbered by their readers in order of their names, and a class without images has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from pipeline.export import BELOW, BaseWriter, ExportSample, distinct
from pipeline.stores.labels import Label, Value

SPLIT = "train"


class Writer(BaseWriter):
    """Boxes are cut off at the image's edges, as readers refuse numbers above 1. `data.yaml` names the same images for
    training and validation, as readers want both: name others there.
    """

    lost = {  # noqa: RUF012 - a constant
        "detection": "the scores",
        "classification": "all of the distribution but the most probable class",
    }
    why_not = "its masks are polygons, which pixels can't be turned into and back, and it knows no other maps"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        self._folders: dict[str, list[Path]] = {}
        for head, label in heads.items():
            self.places[head] = head
            if label.space.task == "detection":
                (folder / head / "images" / SPLIT).mkdir(parents=True)
                (folder / head / "labels" / SPLIT).mkdir(parents=True)
                classes = dict(enumerate(label.space.classes))
                about = {"train": f"images/{SPLIT}", "val": f"images/{SPLIT}", "names": classes}
                text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
                (folder / head / "data.yaml").write_text(text, encoding="utf-8")
            else:
                names = distinct([_folder_name(name) for name in label.space.classes])
                self._folders[head] = [folder / head / SPLIT / name for name in names]

    def add(self, sample: ExportSample) -> None:
        for head, value in sample.values.items():
            place = self._place(head, value, sample)
            if place is not None:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(sample.data)

    def _place(self, head: str, value: Value, sample: ExportSample) -> Path | None:
        """Where the image belongs, its label written or told by the folder; None if no class is known."""
        root = self.folder / head
        if head in self._folders:
            if not value["probs"].any():
                self.leave_out(head, BELOW)
                return None
            return self._folders[head][int(value["probs"].argmax())] / sample.file_name
        lines = _lines(value, sample.size)
        (root / "labels" / SPLIT / f"{sample.key}.txt").write_text("".join(lines), encoding="ascii")
        self.counts[head]["boxes"] += len(lines)
        return root / "images" / SPLIT / sample.file_name


def _lines(value: Value, size: tuple[int, int]) -> list[str]:
    """Boxes as `class x y width height`, the centre and the sides as shares of the image."""
    boxes = np.clip(value["boxes"].astype(np.float64) / np.tile(size, 2), 0, 1)
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return [
        f"{name} {x:.9f} {y:.9f} {width:.9f} {height:.9f}\n"
        for name, (x, y), (width, height) in zip(value["classes"], centres, sides, strict=True)
    ]


def _folder_name(name: str) -> str:
    """A class's name as that of a folder."""
    return name.replace("/", "_").replace("\0", "_").strip(". ") or "_"
