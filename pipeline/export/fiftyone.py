"""FiftyOne's dataset format, for `fiftyone.Dataset.from_dir(..., dataset_type=fiftyone.types.FiftyOneDataset)`.

    metadata.json   samples.json   data/<name>.jpg  fields/<head>/<name>.png

Every head is a field: Classification; Classifications of the classes with a probability of 0.5 or more; Detections with
relative boxes, of masks with a `mask_path` each; Segmentation with `mask_path`, class ids from 1 (0 is unknown, which
FiftyOne does not draw) with names in `mask_targets`; Heatmap with `map_path`, 16 bits, metric depth in millimetres. The
documents are those of FiftyOne 1.0.0; later versions migrate them on reading. The fields `<head>_origin` and
`<head>_origin_name` say who made a label; `train` or `val` is a tag of the sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.export import BELOW_THRESHOLD, BaseWriter, ExportSample, to_image_size
from pipeline.export._png import depth_pixels, png
from pipeline.steps.artifact import write_json
from pipeline.stores.labels import IGNORE, PRESENT, Label, LabelOrigin, LabelSpace, Value
from pipeline.stores.rle import box_around, decode_mask

VERSION = "1.0.0"
RESERVED = ("id", "filepath", "tags", "metadata", "created_at", "last_modified_at", "key", "source", "set")
"""Fields that every sample has."""
LABEL_TYPES = {
    "classification": "Classification",
    "multilabel": "Classifications",
    "detection": "Detections",
    "masks": "Detections",
    "segmentation": "Segmentation",
    "depth": "Heatmap",
}
LABELS = "fiftyone.core.labels"
MIME = {"jpg": "jpeg", "tif": "tiff"}
"""Subtypes of image/ that differ from the file's suffix."""
Document = dict[str, Any]


def _field(name: str, field_type: str, **changes: Any) -> Document:
    """Return the document of a field, with `changes` to the defaults."""
    defaults: Document = {"embedded_doc_type": None, "subfield": None, "fields": [], "description": None, "info": None}
    field_type = f"fiftyone.core.fields.{field_type}Field"
    return {"name": name, "ftype": field_type, **defaults, "db_field": name, "read_only": False, **changes}


ID = _field("id", "ObjectId", db_field="_id")
TAGS = _field("tags", "List", subfield="fiftyone.core.fields.StringField")
METADATA = [
    *(_field(name, "Int") for name in ("size_bytes", "width", "height", "num_channels")),
    _field("mime_type", "String"),
]
SAMPLE_FIELDS = [
    *(ID, _field("filepath", "String"), TAGS),
    _field("metadata", "EmbeddedDocument", embedded_doc_type="fiftyone.core.metadata.ImageMetadata", fields=METADATA),
    *(_field(name, "DateTime", read_only=True) for name in ("created_at", "last_modified_at")),
    *(_field("_media_type", "String"), _field("_rand", "Float"), _field("_dataset_id", "ObjectId")),
    *(_field(name, "String") for name in ("set", "source", "key")),
]
"""Fields that every sample has."""


class Writer(BaseWriter):
    """Writes samples into `samples.json` one by one."""

    supported = {  # noqa: RUF012 - a constant
        "classification": "all of the distribution but the most probable class and its probability",
        "multilabel": "the probabilities below 0.5; whether a class is absent or unknown",
        "detection": "",
        "masks": "the boxes as they were given: each is the smallest around its mask",
        "segmentation": "the confidence of each pixel",
        "depth": "up to half a millimetre, and what is farther than 65.535 m; of relative depth the scale",
    }
    unsupported_reason = "it has no field for vectors per pixel, and its keypoints have no boxes"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        taken = {*RESERVED, *(f"{head}_{name}" for head in heads for name in LabelOrigin._fields)}
        self._fields = {head: f"{head}_label" if head in taken else head for head in heads}
        (folder / "data").mkdir()
        for head, label in heads.items():
            self.locations[head] = f"the field {self._fields[head]}"
            if label.space.task in ("masks", "segmentation", "depth"):
                (folder / "fields" / self._fields[head]).mkdir(parents=True)
        file = open(folder / "samples.json", "w", encoding="utf-8")  # noqa: SIM115 - the writer closes it
        self._samples = self.files.enter_context(file)
        self._samples.write('{"samples": [')
        self._first = True

    def add(self, sample: ExportSample) -> None:
        self.write(f"data/{sample.file_name}", sample.data)
        document = _sample_document(sample)
        for head, value in sample.values.items():
            document[self._fields[head]] = self._label(head, value, sample)
            document |= {f"{head}_{name}": each for name, each in sample.origin(head).items()}
        self._samples.write(("\n" if self._first else ",\n") + json.dumps(document))
        self._first = False

    def _label(self, head: str, value: Value, sample: ExportSample) -> Document | None:
        space = self.heads[head].space
        if space.task in ("detection", "masks"):
            return self._detections(head, value, sample)
        if space.task == "multilabel":
            return self._classifications(head, value, sample)
        document = {"_id": _id(sample.key, head), "_cls": LABEL_TYPES[space.task], "tags": []}
        if space.task == "classification":
            top = int(value["probs"].argmax())
            if not value["probs"][top]:
                self.leave_out(head, BELOW_THRESHOLD)
                return None
            return {**document, "label": space.classes[top], "confidence": float(value["probs"][top])}
        path = f"fields/{self._fields[head]}/{sample.stem}.png"
        if space.task == "segmentation":
            classes = to_image_size(value["classes"], sample.size)
            dtype = np.uint8 if len(space.classes) < 256 else np.uint16
            self.write(path, png(np.where(classes == IGNORE, 0, classes + 1).astype(dtype)))
            return {**document, "mask_path": path}
        pixels = depth_pixels(to_image_size(value["depth"], sample.size), space.scale, self.counts[head])
        self.write(path, png(pixels))
        return {**document, "map_path": path, "range": [0.0, float(max(pixels.max(), 1))]}

    def _classifications(self, head: str, value: Value, sample: ExportSample) -> Document:
        probs, classes = value["probs"], self.heads[head].space.classes
        found = [
            {
                "_id": _id(sample.key, head, number),
                "_cls": "Classification",
                "tags": [],
                "label": classes[number],
                "confidence": float(probs[number]),
            }
            for number in np.flatnonzero(probs >= PRESENT)
        ]
        return {"_cls": "Classifications", "classifications": found}

    def _detections(self, head: str, value: Value, sample: ExportSample) -> Document:
        """Return the boxes, or the masks with the boxes around them; one mask at a time is in memory."""
        classes, detections = self.heads[head].space.classes, list[Document]()
        for number, (score, class_id) in enumerate(zip(value["scores"], value["classes"], strict=True)):
            if "masks" in value:
                corners, outline = self._write_mask(head, value["masks"][number], sample, number)
            else:
                corners, outline = value["boxes"][number], {}
            x0, y0, x1, y1 = (np.asarray(corners, np.float64) / np.tile(sample.size, 2)).tolist()
            detections.append(
                {
                    "_id": _id(sample.key, head, number),
                    "_cls": "Detection",
                    "attributes": {},
                    "tags": [],
                    "label": classes[class_id],
                    "bounding_box": [x0, y0, x1 - x0, y1 - y0],
                    "confidence": float(score),
                    **outline,
                }
            )
        self.counts[head]["boxes"] += len(detections)
        return {"_cls": "Detections", "detections": detections}

    def _write_mask(
        self, head: str, encoded: Any, sample: ExportSample, number: int
    ) -> tuple[tuple[int, int, int, int], Document]:
        """Write a mask, cut to the box around it; return the box's corners, and what its detection says of the file."""
        mask = decode_mask(encoded, sample.size)
        x0, y0, x1, y1 = box_around(mask)
        path = f"fields/{self._fields[head]}/{sample.stem}.{number}.png"
        self.write(path, png(mask[y0:y1, x0:x1].astype(np.uint8) * 255))
        return (x0, y0, x1, y1), {"mask_path": path}

    def finish(self) -> None:
        self._samples.write("\n]}\n")
        spaces = {self._fields[head]: label.space for head, label in self.heads.items()}
        origins = [_field(f"{head}_{name}", "String") for head in self.heads for name in LabelOrigin._fields]
        write_json(self.folder / "metadata.json", _dataset_document(spaces, origins))


def _sample_document(sample: ExportSample) -> Document:
    """Return a sample's document without its labels."""
    mime_type = f"image/{MIME.get(sample.suffix, sample.suffix)}"
    size = {"width": sample.size[0], "height": sample.size[1], "num_channels": None}
    return {
        "_id": {"$oid": f"{sample.key}00000000"},
        "filepath": f"data/{sample.file_name}",
        "tags": [sample.split],
        "metadata": {"_cls": "ImageMetadata", "size_bytes": len(sample.data), "mime_type": mime_type, **size},
        "_media_type": "image",
        "_rand": int(sample.key, 16) / 2**64,
        **sample.about(),
    }


def _id(*parts: object) -> Document:
    """Return an ObjectId that depends on `parts` alone, so that every export of a label has the same."""
    return {"$oid": hashlib.sha256("/".join(str(part) for part in parts).encode()).hexdigest()[:24]}


def _dataset_document(spaces: Mapping[str, LabelSpace], fields: list[Document]) -> Document:
    """Return the document of the dataset: its fields (`fields` and the labels), its classes and its mask targets."""
    targets = {
        field: {str(number): name for number, name in enumerate(space.classes, start=1)}
        for field, space in spaces.items()
        if space.task == "segmentation"
    }
    with_classes = ("classification", "multilabel", "detection", "masks")
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
        "classes": {field: list(space.classes) for field, space in spaces.items() if space.task in with_classes},
        "mask_targets": targets,
        "sample_fields": [*SAMPLE_FIELDS, *fields, *(_label_field(*each) for each in spaces.items())],
        **{name: [] for name in empty_lists},
        **{name: {} for name in (*empty, *runs)},
    }


def _label_field(name: str, space: LabelSpace) -> Document:
    """Return the field of a head's labels."""
    mask, mask_path = _field("mask", "Array"), _field("mask_path", "String")
    named = [_field("label", "String"), _field("confidence", "Float")]
    floats = {"subfield": "fiftyone.core.fields.FloatField"}
    box = [_field("attributes", "Dict"), *named, _field("bounding_box", "List", **floats), mask, mask_path]
    one_class = [ID, TAGS, *named, _field("logits", "Vector")]
    fields = {
        "Classification": one_class,
        "Classifications": [_list_field("classifications", "Classification", one_class)],
        "Detections": [_list_field("detections", "Detection", [ID, TAGS, *box, _field("index", "Int")])],
        "Segmentation": [ID, TAGS, mask, mask_path],
        "Heatmap": [ID, TAGS, _field("map", "Array"), _field("map_path", "String"), _field("range", "List", **floats)],
    }
    label_type = LABEL_TYPES[space.task]
    return _field(name, "EmbeddedDocument", embedded_doc_type=f"{LABELS}.{label_type}", fields=fields[label_type])


def _list_field(name: str, label_type: str, fields: list[Document]) -> Document:
    """Return the field of a list of labels."""
    element = {"subfield": "fiftyone.core.fields.EmbeddedDocumentField", "embedded_doc_type": f"{LABELS}.{label_type}"}
    return _field(name, "List", **element, fields=fields)
