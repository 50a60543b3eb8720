"""COCO's JSON: objects as `instances_train.json`, masks by class as `stuff_train.json`, the images in `images/train/`.

Held-out images are in `instances_val.json` and `images/val/`. Several heads with objects, or with masks by class, have
files each, named after the head. Images and annotations say who made the label, in `origin` and `origin_name`. Category
ids count from 1 in the order of the classes. An image listed without annotations has no objects in it; an image without
a label is not listed. `kind: coco` of a recipe reads the folder of a single head of detection, or with `masks: true` of
masks, as it is; with `keypoints: true` that of a head of keypoints, in `person_keypoints_train.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from faster_coco_eval.core import mask as rle

from pipeline.export import TRAIN, BaseWriter, ExportSample, to_image_size
from pipeline.export._coco import AnnotationFile, category, keypoint_names, keypoint_triples
from pipeline.stores.labels import IGNORE, Label, Value
from pipeline.stores.rle import as_coco, encode_mask, mask_area
from pipeline.stores.skeleton import UNKNOWN

IMAGES = "images"
PREFIX = {"detection": "instances", "masks": "instances", "keypoints": "person_keypoints", "segmentation": "stuff"}


class Writer(BaseWriter):
    """Writes boxes as `bbox` [x, y, width, height] in pixels with `score`, and masks as compressed RLE.

    Masks have the image's size. Of segmentation there is an annotation for every class in the image; pixels of no
    annotation are unknown. Keypoints are x, y and visibility; `keypoint_scores` beside them is none of COCO's keys.
    """

    supported = {  # noqa: RUF012 - a constant
        "detection": "",
        "masks": "",
        "keypoints": "",
        "segmentation": "the confidence of each pixel; an annotation's score is their mean",
    }
    unsupported_reason = "its annotations are boxes, masks and keypoints, of objects or of classes"
    copies_images: ClassVar[bool] = True
    """False to leave the images where they are."""

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        if self.copies_images:
            (folder / IMAGES / TRAIN).mkdir(parents=True)
        self._annotation_files: dict[tuple[str, str], AnnotationFile] = {}
        for head in heads:
            self.locations[head] = self.annotation_name(head, TRAIN)
            self._annotation_file(head, TRAIN)

    def annotation_name(self, head: str, split: str) -> str:
        """Return the name of the file with the annotations of a head."""
        return f"{self.prefix(head)}_{split}.json"

    def prefix(self, head: str) -> str:
        """Return what the names of a head's files begin with."""
        prefixes = {name: PREFIX[label.space.task] for name, label in self.heads.items()}
        alone = list(prefixes.values()).count(prefixes[head]) == 1
        return prefixes[head] if alone else f"{prefixes[head]}_{head}"

    def _annotation_file(self, head: str, split: str) -> AnnotationFile:
        if (head, split) not in self._annotation_files:
            space = self.heads[head].space
            posed = keypoint_names(space.skeleton) if space.skeleton.points else {}
            categories = [{**category(number, name), **posed} for number, name in enumerate(space.classes, start=1)]
            path = self.folder / self.annotation_name(head, split)
            self._annotation_files[head, split] = AnnotationFile(path, categories, self)
        return self._annotation_files[head, split]

    def add(self, sample: ExportSample) -> None:
        if self.copies_images:
            self.write(f"{IMAGES}/{sample.split}/{sample.file_name}", sample.data)
        for head, value in sample.values.items():
            found = ANNOTATIONS[self.heads[head].space.task](value, sample.size)
            annotations = [{"iscrowd": 0, **annotation} for annotation in found]
            self._annotation_file(head, sample.split).add(sample, annotations, sample.origin(head))
            self.counts[head]["annotations"] += len(annotations)

    def finish(self) -> None:
        for file in self._annotation_files.values():
            file.finish()


def _boxes(value: Value, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return an annotation for every box, in float64, so that x + width is exactly the stored right edge."""
    boxes = value["boxes"].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    columns = value["scores"].tolist(), value["classes"].tolist()
    return [
        {"category_id": class_id + 1, "bbox": box, "area": box[2] * box[3], "score": score}
        for box, score, class_id in zip(boxes.tolist(), *columns, strict=True)
    ]


def _objects(value: Value, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return an annotation for every box with a mask, whose pixels are its area."""
    masks = [(mask_area(mask, size), as_coco(mask, size)) for mask in value["masks"]]
    boxes = _boxes(value, size)
    return [{**box, "area": area, "segmentation": mask} for box, (area, mask) in zip(boxes, masks, strict=True)]


def _keypoints(value: Value, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return an annotation for every box, with its points."""
    points = {
        "keypoints": keypoint_triples(value),
        "num_keypoints": (value["visibility"] > UNKNOWN).sum(axis=1).tolist(),
        "keypoint_scores": value["keypoint_scores"].tolist(),
        "area": value["areas"].tolist(),
    }
    rows = zip(*points.values(), strict=True)
    return [{**box, **dict(zip(points, row, strict=True))} for box, row in zip(_boxes(value, size), rows, strict=True)]


def _regions(value: Value, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return an annotation for every class in a segmentation label."""
    classes, confidence = to_image_size(value["classes"], size), to_image_size(value["confidence"], size)
    annotations = []
    for class_id in np.unique(classes[classes != IGNORE]):
        mask = classes == class_id
        segmentation = as_coco(encode_mask(mask), size)
        bbox = rle.toBbox(segmentation).astype(int).tolist()
        shape = {"segmentation": segmentation, "area": int(mask.sum()), "bbox": bbox}
        annotations.append({"category_id": int(class_id) + 1, **shape, "score": float(confidence[mask].mean())})
    return annotations


ANNOTATIONS = {"detection": _boxes, "masks": _objects, "keypoints": _keypoints, "segmentation": _regions}
"""What makes the annotations of a label, by task, for an image of (width, height)."""
