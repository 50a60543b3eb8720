"""Checks before any training that a teacher's set has labels to learn from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from teachers._label_checks import check_labels
from tests.steps import make_step


def crowds(root: Path, is_crowd: list[int]) -> str:
    (root / "images" / "train").mkdir(parents=True)
    for number in range(len(is_crowd)):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(root / f"images/train/{number}.png")
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(len(is_crowd))]
    boxes = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": crowd}
        for number, crowd in enumerate(is_crowd)
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cup"}]}
    (root / "instances_train.json").write_text(json.dumps(content))
    return "coco"


def masks(root: Path, is_unknown: list[int]) -> str:
    for folder in ("images", "masks"):
        (root / folder / "train").mkdir(parents=True)
    for number, unknown in enumerate(is_unknown):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(root / f"images/train/{number}.png")
        Image.fromarray(np.full((30, 40), 255 * unknown, np.uint8)).save(root / f"masks/train/{number}.png")
    (root / "classes.json").write_text(json.dumps({"ignore_index": 255, "classes": {"0": "road"}}))
    return "masks"


@pytest.mark.parametrize(
    ("write", "task", "reason"),
    [
        (
            crowds,
            "detection",
            "no image has a box. .*: 3; the first: images/train/0.png: crowd box dropped: annotation 0",
        ),
        (masks, "segmentation", "nothing is known in any label. Label some"),
    ],
)
def test_check_labels_refuses_a_set_of_whose_labels_nothing_is_left(
    write: Callable[[Path, list[int]], str], task: str, reason: str, tmp_path: Path, runtime: Runtime
) -> None:
    for name, unusable in (("bad", [1, 1, 1]), ("good", [1, 0, 1])):
        source = {"kind": write(tmp_path / name, unusable), "path": str(tmp_path / name)}
        step = make_step(f"data.{name}", "ingest.ingest:ingest", {"name": name, "source": source, "shard_images": 8})
        made = Workspace(runtime.root).make(step, Inputs({}, runtime))
        config = {"name": "t", "teacher": {"data": name, "task": task, "validate": None}}
        if name == "good":
            check_labels(config, Inputs({"data.good": made}, runtime))
            continue
        with pytest.raises(ConfigError, match=f"the set 'bad' has nothing to learn for '{task}' in .*: {reason}"):
            check_labels(config, Inputs({"data.bad": made}, runtime))
