"""Export of PNG rasters: our own sources read the masks and depth back, and rounding errors are bounded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import tasks
from pipeline.export import ExportSample, to_image_size, write_export
from pipeline.sources import depth, masks
from pipeline.stores.labels import LabelSpace, Value
from tests.exports import export, samples

if TYPE_CHECKING:
    from tests.conftest import World

IGNORE = 65535
LOW: dict[str, Any] = {"thresholds": {"masks": 0.2}}


def test_masks_writer_masks_are_read_by_masks_source(world: World, tmp_path: Path) -> None:
    wanted = samples(world, ["masks", "depth"], **LOW)
    summary = export(world, "masks", tmp_path / "out", ["masks", "depth"], **LOW)
    source = masks.Source(masks.Config(path=str(tmp_path / "out")))
    assert list(source.spaces()["segmentation"].classes) == summary["heads"]["masks"]["classes"]
    records = list(source.records())
    assert not source.problems
    unknown = 0
    for record in records:
        sample = wanted[Path(record.name).stem]
        assert (record.split, record.read()) == ("train", sample.data)
        found = record.truth(sample.size).values["segmentation"]["classes"]
        np.testing.assert_array_equal(found, to_image_size(sample.values["masks"]["classes"], sample.size))
        unknown += int((found == IGNORE).sum())
    assert len(records) == len(wanted)
    assert unknown, "the test needs a threshold that leaves pixels unknown"


def test_masks_writer_depth_is_read_by_depth_source(world: World, tmp_path: Path) -> None:
    wanted = samples(world, ["depth"])
    export(world, "masks", tmp_path / "out", ["depth"])
    source = depth.Source(depth.Config(path=str(tmp_path / "out"), rgb="images", hold_out=0))
    records = list(source.records())
    assert len(records) == len(wanted)
    for record in records:
        sample = wanted[Path(record.name).stem]
        assert (record.split, record.read()) == ("train", sample.data)
        found = record.truth(sample.size).values["depth"]["depth"]
        np.testing.assert_allclose(found, to_image_size(sample.values["depth"]["depth"], sample.size), atol=0.00051)


def written(space: LabelSpace, value: Value, out: Path) -> tuple[dict[str, int], np.ndarray]:
    """Export the label of an image of 4x2 pixels; return the counts and the pixels of the PNG."""
    sample = ExportSample("0" * 16, b"", "jpg", (4, 2), "a.jpg", {"it": value})
    summary = write_export("masks", out, {"it": tasks.label(space)}, [sample], {})
    about = summary["heads"]["it"]
    return about["written"], np.asarray(Image.open(out / about["where"] / "train" / f"{'0' * 16}.png"))


def test_masks_writer_counts_depth_beyond_millimetres(tmp_path: Path) -> None:
    metres = np.array([[0, 0.0001, 1.0004, 65.5352], [65.536, 400, 0.0006, 2]], np.float32)
    counts, pixels = written(LabelSpace("depth"), {"depth": metres}, tmp_path / "out")
    assert pixels.dtype == np.uint16
    assert pixels.tolist() == [[0, 1, 1000, 65535], [0, 0, 1, 2000]]
    assert counts == {"images": 1, "pixels farther than 65.535 m, now unknown": 2}


def test_masks_writer_scales_relative_depth(tmp_path: Path) -> None:
    inverse = np.array([[0, 0.25, 0.5, 1], [2, 3, 4, 0]], np.float32)
    _, pixels = written(LabelSpace("depth", (), "relative"), {"depth": inverse}, tmp_path / "out")
    np.testing.assert_allclose(pixels / 65535, inverse / 4, atol=1 / 65535)


def test_masks_writer_keeps_normals_to_half_a_degree(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    normals = drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
    normals[0, 0] = 0
    _, pixels = written(LabelSpace("normals"), {"normals": normals}, tmp_path / "out")
    assert pixels[0, 0].tolist() == [0, 0, 0]
    found = pixels / 127.5 - 1
    cosine = (found * normals).sum(axis=-1) / np.linalg.norm(found, axis=-1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1)))[normals.any(axis=-1)].max() < 0.5


def test_masks_writer_uses_16_bits_for_many_classes(tmp_path: Path) -> None:
    space = LabelSpace("segmentation", tuple(f"c{number}" for number in range(300)))
    classes = np.array([[299, IGNORE, 255, 0], [1, 2, 3, 4]], np.uint16)
    value: Value = {"classes": classes, "confidence": np.ones((2, 4), np.float32)}
    _, pixels = written(space, value, tmp_path / "out")
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, classes)
    read = masks.Source(masks.Config(path=str(tmp_path / "out")))
    assert read.spaces()["segmentation"].classes == space.classes


def test_masks_writer_writes_a_folder_per_head(tmp_path: Path) -> None:
    label = tasks.label(LabelSpace("depth"))
    value = {"depth": np.ones((2, 4), np.float32)}
    sample = ExportSample("0" * 16, b"bytes", "jpg", (4, 2), "a.jpg", {"near": value, "far": value})
    summary = write_export("masks", tmp_path / "out", {"near": label, "far": label}, [sample], {})
    assert {head: about["where"] for head, about in summary["heads"].items()} == {
        "near": "depth_near",
        "far": "depth_far",
    }
    assert (tmp_path / "out" / "images" / "train" / f"{'0' * 16}.jpg").read_bytes() == b"bytes"
