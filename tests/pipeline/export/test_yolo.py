"""YOLO export: the boxes of the dataset in text files, and class folders that our own source reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

import tasks
from pipeline.export import BELOW_THRESHOLD, ExportSample, unique_names, write_export
from pipeline.sources import imagefolder, yolo
from pipeline.stores.labels import LabelSpace
from tests.exports import export, samples

if TYPE_CHECKING:
    from tests.conftest import World

LOW: dict[str, Any] = {"thresholds": {"boxes": 0.02, "kinds": 0.2}}


def test_yolo_writer_texts_hold_the_dataset_boxes(world: World, tmp_path: Path) -> None:
    wanted = samples(world, ["boxes"], **LOW)
    summary = export(world, "yolo", tmp_path / "out", ["boxes"], **LOW)
    root = tmp_path / "out" / "boxes"
    about = yaml.safe_load((root / "data.yaml").read_text("utf-8"))
    assert list(about["names"].values()) == summary["heads"]["boxes"]["classes"]
    assert {path.stem for path in (root / about["train"]).iterdir()} == set(wanted)
    total = 0
    for key, sample in wanted.items():
        assert (root / about["train"] / sample.file_name).read_bytes() == sample.data
        lines = (root / "labels" / "train" / f"{key}.txt").read_text("ascii").splitlines()
        numbers = np.array([line.split() for line in lines], np.float64).reshape(-1, 5)
        assert (numbers[:, 1:] <= 1).all()
        corners = np.concatenate([numbers[:, 1:3] - numbers[:, 3:] / 2, numbers[:, 1:3] + numbers[:, 3:] / 2], axis=1)
        value = sample.values["boxes"]
        edges = np.clip(value["boxes"], 0, np.tile(sample.size, 2))
        np.testing.assert_allclose(corners * np.tile(sample.size, 2), edges, atol=1e-6)
        np.testing.assert_array_equal(numbers[:, 0], value["classes"])
        total += len(lines)
    assert summary["heads"]["boxes"]["written"] == {"images": len(wanted), "boxes": total}
    assert summary["heads"]["boxes"]["lost"] == "the scores"


def test_yolo_writer_boxes_are_read_by_yolo_source(world: World, tmp_path: Path) -> None:
    wanted = samples(world, ["boxes"], **LOW)
    summary = export(world, "yolo", tmp_path / "out", ["boxes"], **LOW)
    source = yolo.Source(yolo.Config(path=str(tmp_path / "out" / "boxes"), hold_out=0))
    assert list(source.spaces()["detection"].classes) == summary["heads"]["boxes"]["classes"]
    records = {Path(record.name).stem: record for record in source.records()}
    assert set(records) == set(wanted)
    for key, sample in wanted.items():
        assert (records[key].split, records[key].read()) == ("train", sample.data)
        value = records[key].truth(sample.size).values["detection"]
        edges = np.clip(sample.values["boxes"]["boxes"], 0, np.tile(sample.size, 2))
        np.testing.assert_allclose(value["boxes"], edges, atol=1e-4)
        np.testing.assert_array_equal(value["classes"], sample.values["boxes"]["classes"])


def test_yolo_writer_class_folders_are_read_by_imagefolder_source(world: World, tmp_path: Path) -> None:
    wanted = samples(world, ["kinds"], **LOW)
    summary = export(world, "yolo", tmp_path / "out", **LOW)
    classes = summary["heads"]["kinds"]["classes"]
    sure = {key: each for key, each in wanted.items() if each.values["kinds"]["probs"].any()}
    assert 0 < len(sure) < len(wanted), "the test needs a threshold that leaves some out"
    assert summary["heads"]["kinds"]["written"] == {"images": len(sure), BELOW_THRESHOLD: len(wanted) - len(sure)}
    source = imagefolder.Source(imagefolder.Config(path=str(tmp_path / "out" / "kinds")))
    records = list(source.records())
    assert {Path(record.name).stem for record in records} == set(sure)
    for record in records:
        sample = sure[Path(record.name).stem]
        assert (record.split, record.read()) == ("train", sample.data)
        truth = record.truth(sample.size).values["classification"]["probs"]
        found = source.spaces()["classification"].classes[int(truth.argmax())]
        assert found == classes[int(sample.values["kinds"]["probs"].argmax())]
    assert set(summary["left_out"]) == {"masks", "depth", "gabor"}


def test_yolo_writer_makes_folders_of_any_class_name(tmp_path: Path) -> None:
    label = tasks.label(LabelSpace("classification", ("a/c", "crane", "crane", "..", "Åal", "Å" * 300)))
    every = [
        ExportSample(
            f"{number:016x}", b"bytes", "jpg", (4, 2), "x", {"it": {"probs": np.eye(6, dtype=np.float32)[number]}}
        )
        for number in range(6)
    ]
    write_export("yolo", tmp_path / "out", {"it": label}, every, {})
    folders = sorted(path.parent.name for path in (tmp_path / "out" / "it" / "train").rglob("*.jpg"))
    assert folders == sorted(["a_c", "crane", "crane (2)", "_", "Åal", "Å" * 100])


@pytest.mark.parametrize(
    "names", [["crane", "crane", "crane (2)"], ["crane (2)", "crane", "crane"], ["a"] * 4, ["a (2)", "a", "a", "a (2)"]]
)
def test_unique_names_are_distinct(names: list[str]) -> None:
    unique = unique_names(names)
    assert len(set(unique)) == len(names)
    assert all(made == name or made.startswith(f"{name} (") for made, name in zip(unique, names, strict=True))
