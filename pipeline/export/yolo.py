"""Data sets in YOLO's layout, as Ultralytics reads it: one per head, in a folder named after the head.

    <head>/data.yaml   images/train/<name>.jpg  labels/train/<name>.txt    detection: class, center and size, relative
    <head>/train/<class>/<name>.jpg                                        classification: a folder per class

Held-out images lie in `val` instead of `train`. An image without boxes has an empty text file; an image without a label
of the head is not in the head's folder. Readers number class folders in order of their names, and a class without
images has no folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from pipeline.export import BELOW_THRESHOLD, TRAIN, VAL, BaseWriter, ExportSample, unique_names
from pipeline.stores.labels import Label, Value

MOST_BYTES = 200
"""Length of a folder's name: file systems take 255 bytes, and a number may follow that makes it unique."""


class Writer(BaseWriter):
    """Writes boxes and class folders.

    Boxes are clipped to the image because readers refuse numbers above 1. Without held-out images `data.yaml` names the
    training images for validation as well, because readers require an entry: replace it by a folder of other images.
    """

    supported = {  # noqa: RUF012 - a constant
        "detection": "the scores",
        "classification": "all of the distribution but the most probable class",
    }
    unsupported_reason = "it holds boxes and one class per image; masks would lose pixels, keypoints names and scores"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        self._class_folders: dict[str, list[str]] = {}
        self._with_val: set[str] = set()
        for head, label in heads.items():
            self.locations[head] = head
            if label.space.task == "detection":
                (folder / head / "images" / TRAIN).mkdir(parents=True)
                (folder / head / "labels" / TRAIN).mkdir(parents=True)
            else:
                self._class_folders[head] = unique_names([_folder_name(name) for name in label.space.classes])

    def add(self, sample: ExportSample) -> None:
        for head, value in sample.values.items():
            name = self._write_label(head, value, sample)
            if name is not None:
                self.write(name, sample.data)

    def _write_label(self, head: str, value: Value, sample: ExportSample) -> str | None:
        """Write the label, and return the path for the image; None if no class is known."""
        if head in self._class_folders:
            if not value["probs"].any():
                self.leave_out(head, BELOW_THRESHOLD)
                return None
            class_folder = self._class_folders[head][int(value["probs"].argmax())]
            return f"{head}/{sample.split}/{class_folder}/{sample.file_name}"
        lines = _box_lines(value, sample.size)
        self.write(f"{head}/labels/{sample.split}/{sample.stem}.txt", "".join(lines).encode("ascii"))
        self.counts[head]["boxes"] += len(lines)
        if sample.split != TRAIN:
            self._with_val.add(head)
        return f"{head}/images/{sample.split}/{sample.file_name}"

    def finish(self) -> None:
        for head, label in self.heads.items():
            if head not in self._class_folders:
                val = f"images/{VAL if head in self._with_val else TRAIN}"
                content = {"train": f"images/{TRAIN}", "val": val, "names": dict(enumerate(label.space.classes))}
                text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
                self.write(f"{head}/data.yaml", text.encode())


def _box_lines(value: Value, size: tuple[int, int]) -> list[str]:
    """Return boxes as `class x y width height`, with the center and the sides relative to the image."""
    boxes = np.clip(value["boxes"].astype(np.float64) / np.tile(size, 2), 0, 1)
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return [
        f"{class_id} {x:.9f} {y:.9f} {width:.9f} {height:.9f}\n"
        for class_id, (x, y), (width, height) in zip(value["classes"], centers, sides, strict=True)
    ]


def _folder_name(name: str) -> str:
    """Return a class name as a folder name: without slashes, leading or trailing dots, never empty nor too long."""
    whole = name.replace("/", "_").replace("\0", "_").strip(". ")
    return whole.encode()[:MOST_BYTES].decode(errors="ignore").strip(". ") or "_"
