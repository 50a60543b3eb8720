"""The folders and the recipe that the pages' commands name, small enough for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

BASE = """
name: mine
data:
  pool:     {kind: folder, path: photos}
  street:   {kind: masks, path: labelled/street}
  things:   {kind: coco, path: labelled/things, classes: supercategory}
  shop:     {kind: imagefolder, path: labelled/shop}
  garments: {kind: imagefolder, path: labelled/garments}
teachers:
  street: {kind: supervised, task: segmentation, data: street}
  things: {kind: supervised, task: detection, data: things}
pool: [pool, street, things]
student: {backbone: resnet18}
stages:
  - {name: clothing, method: mocov2, data: [garments], steps: 2000}
"""
NETWORK = {"backbone": "test_resnet", "image_size": 32, "width": 16, "proposals": 8, "batch": 4, "steps": 1}
STAGE = {"image_size": 32, "batch": 8, "steps": 1}
EVALUATE = {"probes": ["knn"], "finetune": [], "labels": ["all"], "starts": ["student"], "seeds": 1}
COMPARE = {
    "starts": ["student"],
    "backbones": [],
    "shares": [1.0],
    "steps": [1],
    "batch": 8,
    "image_size": 32,
    "seeds": 1,
    "finetune": False,
}


def merge(whole: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """Return `whole` with the keys of `part` set, section by section; a list replaces a list."""
    merged = dict(whole)
    for key, value in part.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def shrink(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with the same sections and names that runs in seconds on a CPU, in one process."""
    small = json.loads(json.dumps(recipe))
    small["runtime"] = {"runner": "inline", "device": "cpu", "precision": "32", "workers": 1}
    small["shard_images"] = 16
    for network in [*small["teachers"].values(), small["student"]]:
        for key in ("epochs", "require", "weights"):
            network.pop(key, None)
        network.update(NETWORK)
    for teacher in small["teachers"].values():
        if teacher["kind"] == "supervised":
            teacher["require"] = "none"  # after one step it is no better than a constant
    for stage in small.get("stages", []):
        stage.update(STAGE)
        if "labels" in stage:
            stage["labels"] |= {"per_class": 2, "classes": 2, "images": 2}
    if "evaluate" in small:
        small["evaluate"] = EVALUATE
    for comparison in small.get("compare", {}).values():
        comparison.update(COMPARE)
        for method in comparison["methods"].values():
            if "labels" in method:
                method["labels"] |= {"per_class": 2, "classes": 2, "images": 2}
    return small


def write_folders(folder: Path) -> None:
    """Write `photos`, and below `labelled` the sets of `BASE`, with noise as images."""
    rng = np.random.default_rng(0)

    def picture(name: str, shape: tuple[int, ...] = (48, 64, 3), most: int = 256) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, most, shape, dtype=np.uint8)).save(path)

    for number in range(8):
        picture(f"photos/IMG_{number}.jpg")
    for split, count in (("train", 8), ("test", 4)):
        for number in range(count):
            for name, class_name in (("shop", "ab"[number % 2]), ("garments", "cd"[number % 2])):
                picture(f"labelled/{name}/{split}/{class_name}/{number}.jpg")
            picture(f"labelled/street/images/{split}/{number}.png")
            picture(f"labelled/street/masks/{split}/{number}.png", (48, 64), 2)
            picture(f"labelled/things/images/{split}/{number}.jpg")
        write_coco(folder / "labelled/things", split, count)
    (folder / "labelled/street/classes.json").write_text('["road", "sky"]', "utf-8")


def write_coco(folder: Path, split: str, count: int) -> None:
    """Write the COCO annotations of one split: a box in each image."""
    categories = [
        {"id": 1, "name": "car", "supercategory": "vehicle"},
        {"id": 2, "name": "cat", "supercategory": "animal"},
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in range(count)]
    boxes = [
        {"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [4, 4, 24, 24], "area": 576, "iscrowd": 0}
        for n in range(count)
    ]
    text = json.dumps({"images": images, "annotations": boxes, "categories": categories})
    (folder / f"instances_{split}.json").write_text(text, "utf-8")


def base() -> dict[str, Any]:
    """Return the recipe that parts of recipes are merged into."""
    return dict(yaml.safe_load(BASE))
