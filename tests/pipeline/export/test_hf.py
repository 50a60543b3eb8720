"""Hugging Face export, as `datasets` loads it: images that open, class names, and every label of the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipeline.export import hf
from pipeline.stores.labels import Value
from tests.exports import export, samples

datasets = pytest.importorskip("datasets")

if TYPE_CHECKING:
    from tests.conftest import World

IGNORE = 65535


def loaded(folder: Path, cache: Path) -> Any:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))


def test_hf_writer_labels_are_loaded_by_datasets(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "ROWS", 5)
    monkeypatch.setattr(hf, "FILE_BYTES", 1)
    low: dict[str, Any] = {"thresholds": {"boxes": 0.02, "masks": 0.2, "kinds": 0.2}}
    wanted = samples(world, **low)
    summary = export(world, "hf", tmp_path / "out", **low)
    files = sorted((tmp_path / "out" / "data").iterdir())
    assert [file.name for file in files][:1] == [f"train-00000-of-{len(files):05d}.parquet"]
    assert len(files) > 1
    found = loaded(tmp_path / "out", tmp_path / "cache")
    assert isinstance(found.features["image"], datasets.Image)
    assert found.features["kinds_class"].names == summary["heads"]["kinds"]["classes"]
    assert len(found) == len(wanted)
    for row in found:
        sample = wanted[row["key"]]
        assert row["image"].size == sample.size == (row["width"], row["height"])
        assert row["source"] == sample.source
        check(row, sample.values)


def check(row: dict[str, Any], values: Mapping[str, Value]) -> None:
    """Check that the columns of a row are its labels."""
    probs = values["kinds"]["probs"]
    assert row["kinds_class"] == (int(probs.argmax()) if probs.any() else None)
    same(row["kinds_probs"], probs)
    objects = row["boxes_objects"]
    boxes = np.array(objects["bbox"], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    same(boxes, values["boxes"]["boxes"])
    same(objects["category"], values["boxes"]["classes"])
    same(objects["score"], values["boxes"]["scores"])
    ids = np.asarray(row["masks_classes"]).astype(np.uint16)
    same(np.where(ids == 255, IGNORE, ids), values["masks"]["classes"])
    same(np.asarray(row["masks_confidence"]) / np.float32(255), values["masks"]["confidence"])
    same(row["depth_depth"], values["depth"]["depth"])
    same(row["gabor_responses"], values["gabor"]["responses"])


def same(found: Any, wanted: NDArray[Any]) -> None:
    np.testing.assert_array_equal(np.asarray(found, wanted.dtype).reshape(wanted.shape), wanted)


def test_hf_writer_writes_null_without_a_label(world: World, tmp_path: Path) -> None:
    """With true labels only, images that no teacher was trained on have none."""
    only = {"labels": "true_only"}
    wanted = samples(world, ["kinds", "depth"], **only)
    summary = export(world, "hf", tmp_path / "out", ["kinds", "depth"], **only)
    assert summary["images"] == len(wanted) < len(samples(world))
    (file,) = (tmp_path / "out" / "data").iterdir()
    rows = pq.read_table(file).to_pylist()
    assert {row["key"] for row in rows} == set(wanted)
    for row in rows:
        assert (row["kinds_class"] is None) == ("kinds" not in wanted[row["key"]].values)


def test_hf_writer_keeps_row_groups_small(world: World, tmp_path: Path) -> None:
    export(world, "hf", tmp_path / "out", ["kinds"])
    (file,) = (tmp_path / "out" / "data").iterdir()
    about = pq.ParquetFile(file).metadata
    assert about.row_group(0).num_rows == about.num_rows <= hf.ROWS
