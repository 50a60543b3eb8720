"""FiftyOne's own form, which `fiftyone.Dataset.from_dir(..., dataset_type=fiftyone.types.FiftyOneDataset)` reads.

    metadata.json   samples.json   data/<key>.jpg   fields/<head>/<key>.png

A field per head: Classification; Detections with relative boxes; Segmentation with `mask_path`, whose numbers are class
ids from 1 (0 is unknown; FiftyOne draws it as nothing) under `mask_targets`; Heatmap with `map_path`, 16 bits, metric
depth in millimetres. The documents are those of FiftyOne 1.0.0; later versions migrate them when they read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.export import BELOW, BaseWriter, ExportSample, at_size
from pipeline.export._png import IGNORE, millimetres, shares_of_nearest
from pipeline.steps.artifact import write_json
from pipeline.stores.labels import Label, LabelSpace, Value

VERSION = "1.0.0"
RESERVED = ("id", "filepath", "tags", "metadata", "created_at", "last_modified_at", "key", "source")
"""Fields that every sample has."""
KINDS = {
    "classification": "Classification",
    "detection": "Detections",
    "segmentation": "Segmentation",
    "depth": "Heatmap",
}
MIME = {"jpg": "jpeg", "tif": "tiff"}
Document = dict[str, Any]


class Writer(BaseWriter):
    """Samples go into `samples.json` as they come."""

    lost = {  # noqa: RUF012 - a constant
        "classification": "all of the distribution but the most probable class and its probability",
        "detection": "",
        "segmentation": "the confidence of each pixel",
        "depth": "up to half a millimetre, and what is farther than 65.535 m; of relative depth the scale",
    }
    why_not = "it has no field for vectors per pixel"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        self._fields = {head: f"{head}_label" if head in RESERVED else head for head in heads}
        (folder / "data").mkdir()
        for head, label in heads.items():
            self.places[head] = f"the field {self._fields[head]}"
            if label.space.task in ("segmentation", "depth"):
                (folder / "fields" / self._fields[head]).mkdir(parents=True)
        file = open(folder / "samples.json", "w", encoding="utf-8")  # noqa: SIM115 - the writer closes it
        self._samples = self.files.enter_context(file)
        self._samples.write('{"samples": [')
        self._first = True

    def add(self, sample: ExportSample) -> None:
        (self.folder / "data" / sample.file_name).write_bytes(sample.data)
        labels = {self._fields[head]: self._label(head, value, sample) for head, value in sample.values.items()}
        self._samples.write(("\n" if self._first else ",\n") + json.dumps({**_about(sample), **labels}))
        self._first = False

    def _label(self, head: str, value: Value, sample: ExportSample) -> Document | None:
        space = self.heads[head].space
        if space.task == "detection":
            return self._detections(head, value, sample)
        about = {"_id": _id(sample.key, head), "_cls": KINDS[space.task], "tags": []}
        if space.task == "classification":
            top = int(value["probs"].argmax())
            if not value["probs"][top]:
                self.leave_out(head, BELOW)
                return None
            return {**about, "label": space.classes[top], "confidence": float(value["probs"][top])}
        path = f"fields/{self._fields[head]}/{sample.key}.png"
        if space.task == "segmentation":
            classes = at_size(value["classes"], sample.size, IGNORE)
            kind = np.uint8 if len(space.classes) < 256 else np.uint16
            Image.fromarray(np.where(classes == IGNORE, 0, classes + 1).astype(kind)).save(self.folder / path)
            return {**about, "mask_path": path}
        return {**about, "map_path": path, "range": [0.0, self._depth(head, value, sample, path)]}

    def _depth(self, head: str, value: Value, sample: ExportSample, path: str) -> float:
        """Write a depth map; its largest number."""
        depth = at_size(value["depth"], sample.size, 0.0)
        if self.heads[head].space.scale == "relative":
            pixels = shares_of_nearest(depth)
        else:
            pixels, far = millimetres(depth)
            if far:
                self.counts[head]["pixels farther than 65.535 m, now unknown"] += far
        Image.fromarray(pixels).save(self.folder / path)
        return float(max(pixels.max(), 1))

    def _detections(self, head: str, value: Value, sample: ExportSample) -> Document:
        boxes = value["boxes"].astype(np.float64) / np.tile(sample.size, 2)
        boxes[:, 2:] -= boxes[:, :2]
        names = self.heads[head].space.classes
        found = [
            {
                "_id": _id(sample.key, head, number),
                "_cls": "Detection",
                "attributes": {},
                "tags": [],
                "label": names[name],
                "bounding_box": box.tolist(),
                "confidence": float(score),
            }
            for number, (box, score, name) in enumerate(zip(boxes, value["scores"], value["classes"], strict=True))
        ]
        self.counts[head]["boxes"] += len(found)
        return {"_cls": "Detections", "detections": found}

    def finish(self) -> None:
        self._samples.write("\n]}\n")
        super().finish()
        spaces = {self._fields[head]: label.space for head, label in self.heads.items()}
        write_json(self.folder / "metadata.json", _dataset(spaces))


def _about(sample: ExportSample) -> Document:
    """What a sample says of its image."""
    kind = f"image/{MIME.get(sample.suffix, sample.suffix)}"
    size = {"width": sample.size[0], "height": sample.size[1], "num_channels": None}
    return {
        "_id": {"$oid": f"{sample.key}00000000"},
        "filepath": f"data/{sample.file_name}",
        "tags": [],
        "metadata": {"_cls": "ImageMetadata", "size_bytes": len(sample.data), "mime_type": kind, **size},
        "_media_type": "image",
        "_rand": int(sample.key, 16) / 2**64,
        "key": sample.key,
        "source": sample.source,
    }


def _id(*parts: object) -> Document:
    """An identifier that the same label has every time."""
    return {"$oid": hashlib.sha256("/".join(str(part) for part in parts).encode()).hexdigest()[:24]}


def _dataset(spaces: Mapping[str, LabelSpace]) -> Document:
    """The document of a data set: what its fields are and what their numbers and names mean."""
    targets = {
        field: {str(number): name for number, name in enumerate(space.classes, start=1)}
        for field, space in spaces.items()
        if space.task == "segmentation"
    }
    named = ("classification", "detection")
    media = {f"{use}_media_field": "filepath" for use in ("grid", "modal")}
    empty_lists = ("tags", "default_classes", "frame_fields", "saved_views", "workspaces")
    empty = ("info", "group_media_types", "default_mask_targets", "skeletons")
    runs = ("annotation_runs", "brain_methods", "evaluations", "runs")
    return {
        "version": VERSION,
        "name": "must",
        "slug": "must",
        "persistent": False,
        "media_type": "image",
        "app_config": {"media_fields": ["filepath"], **media, "plugins": {}},
        "classes": {field: list(space.classes) for field, space in spaces.items() if space.task in named},
        "mask_targets": targets,
        "sample_fields": [*_common(), *(_label_field(field, space) for field, space in spaces.items())],
        **{name: [] for name in empty_lists},
        **{name: {} for name in (*empty, *runs)},
    }


def _field(name: str, kind: str, **more: Any) -> Document:
    """The document of a field; `more` says what is in it, where it holds others."""
    nothing: Document = {"embedded_doc_type": None, "subfield": None, "fields": [], "description": None, "info": None}
    return {"name": name, "ftype": _type(kind), **nothing, "db_field": name, "read_only": False, **more}


def _type(kind: str) -> str:
    return f"fiftyone.core.fields.{kind}Field"


def _common() -> list[Document]:
    numbers = [_field(name, "Int") for name in ("size_bytes", "width", "height", "num_channels")]
    inside = {"embedded_doc_type": "fiftyone.core.metadata.ImageMetadata", "fields": [*numbers, _text("mime_type")]}
    times = [_field(name, "DateTime", read_only=True) for name in ("created_at", "last_modified_at")]
    hidden = [_text("_media_type"), _field("_rand", "Float"), _field("_dataset_id", "ObjectId")]
    own = [_text("key"), _text("source")]
    return [_ids(), _text("filepath"), _tags(), _field("metadata", "EmbeddedDocument", **inside), *times, *hidden, *own]


def _text(name: str) -> Document:
    return _field(name, "String")


def _ids() -> Document:
    return _field("id", "ObjectId", db_field="_id")


def _tags() -> Document:
    return _field("tags", "List", subfield=_type("String"))


def _numbers(name: str) -> Document:
    return _field(name, "List", subfield=_type("Float"))


def _label_field(name: str, space: LabelSpace) -> Document:
    label = [_ids(), _tags()]
    named = [_text("label"), _field("confidence", "Float")]
    box = [*label, _field("attributes", "Dict"), *named, _numbers("bounding_box"), _field("mask", "Array")]
    each = {"subfield": _type("EmbeddedDocument"), "embedded_doc_type": "fiftyone.core.labels.Detection"}
    fields = {
        "Classification": [*label, *named, _field("logits", "Vector")],
        "Detections": [_field("detections", "List", **each, fields=[*box, _text("mask_path"), _field("index", "Int")])],
        "Segmentation": [*label, _field("mask", "Array"), _text("mask_path")],
        "Heatmap": [*label, _field("map", "Array"), _text("map_path"), _numbers("range")],
    }
    kind = KINDS[space.task]
    return _field(name, "EmbeddedDocument", embedded_doc_type=f"fiftyone.core.labels.{kind}", fields=fields[kind])
