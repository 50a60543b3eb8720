"""Exports of multi-label classification: every form that has a place for it, and those that have none."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import tasks
from pipeline.errors import ConfigError
from pipeline.export import ExportSample, write_export
from pipeline.stores.labels import LabelSpace

SPACE = LabelSpace("multilabel", ("Edema", "Fracture", "Mass", "Nodule"))
PROBS = np.array([0.75, 0.25, np.nan, 0.5], np.float32)
KEY = "0123456789abcdef"


def export(form: str, out: Path) -> dict[str, Any]:
    """Export one image in which two classes are found, one is absent and one unknown."""
    sample = ExportSample(KEY, b"image", "jpg", (4, 2), "x", {"findings": {"probs": PROBS}})
    return write_export(form, out, {"findings": tasks.label(SPACE)}, [sample], {})


def test_hf_writer_writes_classes_found_and_all_probabilities_of_a_multilabel_head(tmp_path: Path) -> None:
    summary = export("hf", tmp_path / "out")
    assert summary["heads"]["findings"]["lost"] == ""
    (file,) = (tmp_path / "out/data").iterdir()
    table = pq.read_table(file)
    (row,) = table.to_pylist()
    assert row["findings_classes"] == [0, 3]
    np.testing.assert_array_equal(row["findings_probs"], PROBS)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["findings_classes"]["feature"]["names"] == list(SPACE.classes)


def test_webdataset_writer_writes_null_for_unknown_multilabel_classes(tmp_path: Path) -> None:
    export("webdataset", tmp_path / "out")
    with tarfile.open(tmp_path / "out/train-000000.tar") as tar:
        member = tar.extractfile(f"{KEY}.findings.json")
        assert member
        assert json.load(member) == {"probs": [0.75, 0.25, None, 0.5]}


def test_fiftyone_writer_writes_classifications_of_a_multilabel_head(tmp_path: Path) -> None:
    export("fiftyone", tmp_path / "out")
    about = json.loads((tmp_path / "out/metadata.json").read_text("utf-8"))
    assert about["classes"] == {"findings": list(SPACE.classes)}
    field = next(field for field in about["sample_fields"] if field["name"] == "findings")
    assert field["embedded_doc_type"] == "fiftyone.core.labels.Classifications"
    assert field["fields"][0]["embedded_doc_type"] == "fiftyone.core.labels.Classification"
    (sample,) = json.loads((tmp_path / "out/samples.json").read_text("utf-8"))["samples"]
    found = [(each["label"], each["confidence"]) for each in sample["findings"]["classifications"]]
    assert sample["findings"]["_cls"] == "Classifications"
    assert found == [("Edema", 0.75), ("Nodule", 0.5)]


@pytest.mark.parametrize("form", ["yolo", "coco", "masks"])
def test_write_export_refuses_multilabel_heads_by_name(form: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--to {form} can hold labels for .* heads are findings \(multilabel\)"):
        export(form, tmp_path / "out")
