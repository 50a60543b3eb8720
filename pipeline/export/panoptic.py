"""COCO's panoptic form (Kirillov et al., CVPR 2019): each pixel is of one object, of one class of the rest, or unknown.

    panoptic_train.json     panoptic_train/<name>.png     images/train/<name>.jpg

Objects come from a head of masks, everything else from a head of segmentation; without one of them its part is
unknown. Where objects overlap, the pixel is of the one with the highest score. A class of segmentation that the masks
have as well is one of objects: its pixels without an object are unknown. Held-out images are in `panoptic_val.json`,
`panoptic_val` and `images/val`. A PNG holds a segment's id as red + 256 green + 65,536 blue; 0 is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.export import TRAIN, BaseWriter, ExportSample, to_image_size
from pipeline.export._coco import AnnotationFile, category
from pipeline.export._png import png
from pipeline.stores.labels import IGNORE, Label, Value
from pipeline.stores.rle import box_around, surest_objects

THINGS, STUFF = "masks", "segmentation"
"""The tasks of the heads that tell of objects, and of everything else."""


class Writer(BaseWriter):
    """Merges a head of masks and one of segmentation. Raises ConfigError if there are two of one task."""

    supported = {  # noqa: RUF012 - a constant
        THINGS: "boxes, and pixels where an object of a higher score is",
        STUFF: "the confidence of each pixel; classes that the masks have as well, where no object is",
    }
    unsupported_reason = "it is made of masks of objects and of classes"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        self._heads: dict[str, str] = {}
        for head, label in heads.items():
            other = self._heads.setdefault(label.space.task, head)
            if other != head:
                raise ConfigError(
                    f"--to panoptic makes one picture of a head of masks and a head of segmentation, and {other!r} and "
                    f"{head!r} are both of {label.space.task}: name one of each with --head."
                )
        self.locations = dict.fromkeys(heads, f"panoptic_{TRAIN}.json")
        things, stuff = (self._classes(task) for task in (THINGS, STUFF))
        rest = [name for name in stuff if name not in things]
        numbers = {name: number for number, name in enumerate((*things, *rest), start=1)}
        self._categories = [
            {**category(number, name), "isthing": int(name in things)} for name, number in numbers.items()
        ]
        self._stuff = np.array([0 if name in things else numbers[name] for name in stuff], dtype=np.int64)
        self._files: dict[str, AnnotationFile] = {}
        self._file(TRAIN)

    def _classes(self, task: str) -> tuple[str, ...]:
        return self.heads[self._heads[task]].space.classes if task in self._heads else ()

    def _file(self, split: str) -> AnnotationFile:
        if split not in self._files:
            (self.folder / f"panoptic_{split}").mkdir(exist_ok=True)
            self._files[split] = AnnotationFile(self.folder / f"panoptic_{split}.json", self._categories, self)
        return self._files[split]

    def add(self, sample: ExportSample) -> None:
        self.write(f"images/{sample.split}/{sample.file_name}", sample.data)
        ids = np.zeros(sample.size[::-1], dtype=np.int32)
        segments: list[dict[str, Any]] = []
        for pixels, segment in self._segments(sample):
            segments.append({"id": len(segments) + 1, **segment, **_shape(pixels), "iscrowd": 0})
            ids[pixels] = len(segments)
        name = f"{sample.stem}.png"
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65_536], axis=-1).astype(np.uint8)
        self.write(f"panoptic_{sample.split}/{name}", png(colors))
        self._file(sample.split).add(sample, [{"file_name": name, "segments_info": segments}], {})

    def _segments(self, sample: ExportSample) -> Iterator[tuple[NDArray[np.bool_], dict[str, Any]]]:
        """Yield the pixels (H, W) of each segment, which share none, and what is said of it."""
        values = {task: sample.values[head] for task, head in self._heads.items() if head in sample.values}
        free = np.ones(sample.size[::-1], dtype=bool)
        if THINGS in values:
            head = self._heads[THINGS]
            for pixels, segment in self._objects(head, values[THINGS], sample.size):
                free &= ~pixels
                yield pixels, {**segment, **sample.origin(head)}
        if STUFF in values:
            head = self._heads[STUFF]
            classes = to_image_size(values[STUFF]["classes"], sample.size)
            numbers = np.where(classes == IGNORE, 0, np.append(self._stuff, 0)[np.minimum(classes, len(self._stuff))])
            for number in np.unique(numbers[free & (numbers > 0)]).tolist():
                self.counts[head]["segments"] += 1
                yield free & (numbers == number), {"category_id": number, **sample.origin(head)}

    def _objects(
        self, head: str, value: Value, size: tuple[int, int]
    ) -> Iterator[tuple[NDArray[np.bool_], dict[str, Any]]]:
        surest = surest_objects(value, size)
        for index, (class_id, score) in enumerate(
            zip(value["classes"].tolist(), value["scores"].tolist(), strict=True)
        ):
            pixels = surest == index
            if not pixels.any():
                self.counts[head]["objects behind others, left out"] += 1
                continue
            self.counts[head]["segments"] += 1
            yield pixels, {"category_id": class_id + 1, "score": score}

    def finish(self) -> None:
        for file in self._files.values():
            file.finish()


def _shape(pixels: NDArray[np.bool_]) -> dict[str, Any]:
    x0, y0, x1, y1 = box_around(pixels)
    return {"area": int(pixels.sum()), "bbox": [x0, y0, x1 - x0, y1 - y0]}
