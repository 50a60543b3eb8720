"""FiftyOne export: its documents against those of FiftyOne 1.22.1, and its labels against those of the dataset.

FiftyOne needs a database server and is not installed. `FIELDS`, `SAMPLE` and the rest below were written down from what
version 1.22.1 stores (`fiftyone/core/odm/dataset.py`, `fiftyone/core/labels.py`) and reads back
(`FiftyOneDatasetImporter` in `fiftyone/utils/data/importers.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from pipeline.export import BELOW_THRESHOLD, to_image_size
from tests.exports import export, samples

if TYPE_CHECKING:
    from tests.conftest import World

LOW: dict[str, Any] = {"thresholds": {"boxes": 0.02, "masks": 0.2, "kinds": 0.2}}
LABEL = "fiftyone.core.labels"
FIELDS = {
    "id": ("ObjectIdField", None),
    "filepath": ("StringField", None),
    "tags": ("ListField", None),
    "metadata": ("EmbeddedDocumentField", "fiftyone.core.metadata.ImageMetadata"),
    "created_at": ("DateTimeField", None),
    "last_modified_at": ("DateTimeField", None),
    "_media_type": ("StringField", None),
    "_rand": ("FloatField", None),
    "_dataset_id": ("ObjectIdField", None),
}
"""Fields of every image dataset."""
INSIDE = {
    "Classification": ["id", "tags", "label", "confidence", "logits"],
    "Detections": ["detections"],
    "Detection": [
        *("id", "tags", "attributes", "label", "bounding_box", "mask", "mask_path", "confidence", "index"),
    ],
    "Segmentation": ["id", "tags", "mask", "mask_path"],
    "Heatmap": ["id", "tags", "map", "map_path", "range"],
}
"""The fields of label documents."""
ABOUT_FIELD = {
    *("name", "ftype", "embedded_doc_type", "subfield", "fields", "db_field", "description", "info", "read_only"),
}
HEADS = ("kinds", "boxes", "masks", "depth")
ORIGINS = [f"{head}_{name}" for head in HEADS for name in ("origin", "origin_name")]
METADATA = {"_cls", "size_bytes", "mime_type", "width", "height", "num_channels"}


@pytest.fixture(scope="module")
def out(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fiftyone") / "out"
    export(world, "fiftyone", folder, **LOW)
    return folder


def read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def check_inside(field: dict[str, Any]) -> None:
    """Check a field's document and those of the fields in it."""
    assert set(field) == ABOUT_FIELD
    assert field["db_field"] == ("_id" if field["name"] == "id" else field["name"])
    kind = (field["embedded_doc_type"] or "").rpartition(".")[2]
    if kind in INSIDE:
        assert sorted(each["name"] for each in field["fields"]) == sorted(INSIDE[kind])
    for each in field["fields"]:
        check_inside(each)


def test_fiftyone_writer_writes_the_fields_that_fiftyone_stores(out: Path) -> None:
    about = read(out / "metadata.json")
    assert about["version"] == "1.0.0", "without a version it would be taken for the legacy format"
    assert about["media_type"] == "image"
    fields = {field["name"]: field for field in about["sample_fields"]}
    for name, (kind, document) in FIELDS.items():
        assert fields[name]["ftype"] == f"fiftyone.core.fields.{kind}"
        assert fields[name]["embedded_doc_type"] == document
    for name, kind in {
        "kinds": "Classification",
        "boxes": "Detections",
        "masks": "Segmentation",
        "depth": "Heatmap",
    }.items():
        assert fields[name]["embedded_doc_type"] == f"{LABEL}.{kind}"
    for field in fields.values():
        check_inside(field)
    assert set(fields) == {*FIELDS, "key", "source", "set", *HEADS, *ORIGINS}
    assert list(about["mask_targets"]["masks"]) == [str(number) for number in range(1, 8)]


def test_fiftyone_writer_samples_hold_the_dataset_labels(out: Path, world: World) -> None:
    wanted = samples(world, ["kinds", "boxes", "masks", "depth"], **LOW)
    about = read(out / "export.json")["heads"]
    found = read(out / "samples.json")["samples"]
    assert len({each["_id"]["$oid"] for each in found}) == len(found) == len(wanted)
    unsure = 0
    for each in found:
        sample = wanted[each["key"]]
        assert each["filepath"] == f"data/{sample.file_name}"
        assert (out / each["filepath"]).read_bytes() == sample.data
        assert set(each["metadata"]) == METADATA
        assert (each["metadata"]["width"], each["metadata"]["height"]) == sample.size
        assert (each["tags"], each["_media_type"]) == (["train"], "image")
        check_class(each["kinds"], sample.values["kinds"]["probs"], about["kinds"]["classes"])
        check_boxes(each["boxes"], sample.values["boxes"], sample.size, about["boxes"]["classes"])
        check_maps(out, each, sample)
        unsure += each["kinds"] is None
    assert about["kinds"]["written"] == {"images": len(wanted) - unsure, BELOW_THRESHOLD: unsure}


def check_class(found: dict[str, Any] | None, probs: np.ndarray, classes: list[str]) -> None:
    if not probs.any():
        assert found is None
        return
    assert found is not None
    assert (found["_cls"], found["label"]) == ("Classification", classes[int(probs.argmax())])
    assert found["confidence"] == probs.max()


def check_boxes(found: dict[str, Any], value: dict[str, Any], size: tuple[int, int], classes: list[str]) -> None:
    assert found["_cls"] == "Detections"
    boxes = np.array([each["bounding_box"] for each in found["detections"]]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(boxes * np.tile(size, 2), value["boxes"], atol=1e-5)
    assert [each["confidence"] for each in found["detections"]] == value["scores"].tolist()
    assert [each["label"] for each in found["detections"]] == [classes[name] for name in value["classes"]]
    identifiers = [each["_id"]["$oid"] for each in found["detections"]]
    assert len(set(identifiers)) == len(identifiers)


def check_maps(out: Path, found: dict[str, Any], sample: Any) -> None:
    mask, depth = found["masks"], found["depth"]
    assert (mask["_cls"], mask["mask_path"]) == ("Segmentation", f"fields/masks/{sample.key}.png")
    ids = np.asarray(Image.open(out / mask["mask_path"])).astype(np.int64) - 1
    classes = to_image_size(sample.values["masks"]["classes"], sample.size)
    np.testing.assert_array_equal(np.where(ids < 0, 65535, ids), classes)
    assert (depth["_cls"], depth["map_path"]) == ("Heatmap", f"fields/depth/{sample.key}.png")
    pixels = np.asarray(Image.open(out / depth["map_path"]))
    assert pixels.dtype == np.uint16
    assert depth["range"] == [0, pixels.max()]
    metres = to_image_size(sample.values["depth"]["depth"], sample.size)
    np.testing.assert_allclose(pixels / 1000, metres, atol=0.00051)


def test_fiftyone_writer_leaves_texture_out(out: Path) -> None:
    left_out = read(out / "export.json")["left_out"]
    reason = "it has no field for vectors per pixel, and its keypoints have no boxes"
    assert left_out == {"gabor": f"fiftyone has no place for texture: {reason}"}
