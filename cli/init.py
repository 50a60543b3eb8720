"""A first recipe for the folders a user has: looked at, not asked about."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError, MustError
from pipeline.stores.labels import LabelSpace

ORDER = ("coco", "depth", "masks", "imagefolder", "parquet", "webdataset", "folder")
"""Kinds from the most particular layout to the least: the first that opens and fits is taken."""
MARKS = {"coco": ("annotations",), "depth": ("rgb", "depth"), "masks": ("images", "masks")}
"""Folders that make a layout plain: where they are and it does not open, the reason is told, not another kind tried."""

SUPERVISED = """\
  {name}:
    kind: supervised
    task: {task}
    data: {data}
    backbone: resnet18      # any timm model
    # weights: timm         # start from published weights: `timm` downloads them, a path or package:... does not
    image_size: 192
    epochs: 20
    # require: {{{metric}: 0.3}}   # worse than this on held-out images, it may not label
"""

RECIPE = """\
# A recipe for `must run`. `must plan {file}` shows what it will do.
name: {name}
seed: 0

data:
{data}
teachers:
{teachers}
# What is labelled by all teachers and learned from: unlabelled sets and, with their true labels, labelled ones.
pool: [{pool}]

student:
  backbone: resnet18
  # weights: timm
  image_size: 192
  epochs: 10
  # weighting: equal        # instead of MuST's rule from the schedules of teachers and student
  # thresholds: {{detection: 0.5, segmentation: 0.5}}

# runtime: {{device: auto, precision: auto, runner: threads}}   # runner: inline runs without Prefect
"""
METRIC = {
    "classification": "accuracy",
    "detection": "ap50",
    "segmentation": "miou",
    "depth": "delta_1.25",
    "normals": "within_11.25",
}


def write_recipe(folders: Sequence[Path], to: Path) -> list[str]:
    """Write a commented recipe for `folders` to `to`; returns a line per folder on what it was taken for.

    ConfigError if `to` is there already, no folder is given, or one holds nothing that could be used.
    """
    if to.exists():
        raise ConfigError(f"{to} is there already; name another file with --to, or move it away.")
    if not folders:
        raise ConfigError("Name the folders with your images: must init photos/ labelled/street labelled/things")
    found = {_name(folder): sniff(folder) for folder in folders}
    if len(found) < len(folders):
        raise ConfigError(f"Two of the folders have the same name: {', '.join(map(str, folders))}. Rename one.")
    data = "".join(f"  {name}: {{{_settings(entry)}}}\n" for name, (entry, _) in found.items())
    teachers = "".join(_teacher(name, task) for name, (_, tasks) in found.items() for task in tasks)
    text = RECIPE.format(
        file=to.name,
        name=re.sub(r"[^A-Za-z0-9._-]", "-", to.stem),
        data=data,
        teachers=teachers or "  # none of the folders has labels: add a pretrained teacher\n",
        pool=", ".join(found),
    )
    to.write_text(text, encoding="utf-8")
    return [f"{entry['path']}: {entry['kind']}, {_said(tasks)}" for entry, tasks in found.values()]


def sniff(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The `data` entry for a folder and the tasks it has labels for."""
    for kind in ORDER:
        module = importlib.import_module(f"pipeline.sources.{kind}")
        entry = {"kind": kind, "path": str(folder)}
        if kind == "depth" and (folder / "cameras.json").exists():
            entry["normals"] = "from_depth"  # intrinsics are there: the surfaces' directions follow from the depth
        try:
            source = module.Source(module.Config(**entry))
            spaces = source.spaces()
            if _one_class(spaces) or next(iter(source.records()), None) is None:
                continue
            return entry, list(spaces)
        except (MustError, ValueError):
            if kind in MARKS and all((folder / fingerprint).is_dir() for fingerprint in MARKS[kind]):
                raise
    raise DataError(f"{folder}: holds no images in a layout that is known; known are {', '.join(ORDER)}.")


def _one_class(spaces: Mapping[str, LabelSpace]) -> bool:
    """Whether images are told apart by nothing: photos/holiday/*.jpg is a folder, not a set of one class."""
    return "classification" in spaces and len(spaces["classification"].classes) == 1


def _name(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9_]", "_", folder.resolve().name.lower())
    return name if name[:1].isalpha() else f"set_{name}"


def _settings(entry: dict[str, Any]) -> str:
    return ", ".join(f'{key}: "{value}"' if key == "path" else f"{key}: {value}" for key, value in entry.items())


def _teacher(name: str, task: str) -> str:
    return SUPERVISED.format(name=f"{name}_{task}", task=task, data=name, metric=METRIC[task])


def _said(tasks: list[str]) -> str:
    return f"with labels for {', '.join(tasks)}" if tasks else "without labels"
