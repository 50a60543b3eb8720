"""Write a first recipe for a user's folders of images, from what the folders contain."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ingest.ingest import open_source
from pipeline.errors import ConfigError, DataError, MustError
from pipeline.recipe.reader import escape
from pipeline.sources._files import IMAGE_SUFFIXES
from pipeline.stores.labels import LabelSpace

ORDER = ("coco", "depth", "masks", "imagefolder", "parquet", "webdataset", "csv", "folder")
"""Source kinds, the most specific layout first: the first one that fits a folder is used."""
LAYOUT_FOLDERS = {"coco": ("annotations",), "depth": ("rgb", "depth"), "masks": ("images", "masks")}
"""Subfolders that identify a layout: a folder that has them and can't be read is an error."""
FOREIGN = {
    ".txt": ". If these are YOLO's labels: convert them to COCO, which `kind: coco` reads",
    ".xml": ". If these are Pascal VOC's labels: convert them to COCO, which `kind: coco` reads",
    ".json": ". If these are COCO's: `kind: coco` takes them as `annotations: {train: FILE}`",
}
"""What to do with label files that no layout reads, by their suffix."""

SUPERVISED = """\
  {name}:
    kind: supervised
    task: {task}
    data: {data}
    backbone: resnet18      # any timm model
    # weights: timm         # published weights: `timm` downloads them; a path or package:... does not
    image_size: 192
    epochs: 20
    # require: {{{metric}: 0.3}}   # a teacher worse than this on held-out images may not label
"""

RECIPE = """\
# A recipe for `must run`. `must plan {file}` shows what it will do.
name: {name}
seed: 0

data:
{data}
teachers:
{teachers}
# The sets that all teachers label and the student learns from. Labelled sets keep their true labels.
pool: [{pool}]

student:
  backbone: resnet18
  # weights: timm
  image_size: 192
  epochs: 10
  # weighting: equal        # instead of MuST's rule, which follows the schedules of teachers and student
  # thresholds: {{detection: 0.5, segmentation: 0.5}}

# runtime: {{device: auto, precision: auto, runner: threads}}   # runner: inline runs without Prefect
"""
MOST_LETTERS = 60
"""Of names: a teacher's is the set's with the task behind it."""
METRIC = {
    "classification": "accuracy",
    "multilabel": "map",
    "detection": "ap50",
    "segmentation": "miou",
    "depth": "delta_1.25",
    "normals": "within_11.25",
}


def write_recipe(folders: Sequence[Path], to: Path) -> list[str]:
    """Write a commented recipe for `folders` to `to`, and return a line per folder that says how it is read.

    One more line says so if there is no teacher for lack of labels.

    Raises ConfigError if `to` exists, no folder is given or two have the same name, DataError if one can't be used.
    """
    if to.exists():
        raise ConfigError(f"{to} exists already; name another file with --to, or move it away.")
    if not folders:
        raise ConfigError("Name the folders with your images: must init photos/ labelled/street labelled/things")
    detected = {_name(folder): detect_source(folder) for folder in folders}
    if len(detected) < len(folders):
        raise ConfigError(f"Two of the folders have the same name: {', '.join(map(str, folders))}. Rename one.")
    entries = {name: {**entry, "path": _from_recipe(entry["path"], to)} for name, (entry, _) in detected.items()}
    data = "".join(f"  {name}: {{{_settings(entry)}}}\n" for name, entry in entries.items())
    teachers = "".join(_teacher(name, task) for name, (_, tasks) in detected.items() for task in tasks)
    text = RECIPE.format(
        file=to.name,
        name=_run_name(to.stem),
        data=data,
        teachers=teachers or "  {}  # none of the folders has labels: add a pretrained teacher\n",
        pool=", ".join(detected),
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")
    lines = [_described(entry, tasks) for entry, tasks in detected.values()]
    if not teachers:
        lines.append("None of them has labels: add a teacher to the recipe, such as a pretrained one.")
    return lines


def detect_source(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the `data` entry for a folder, and the tasks it has labels for."""
    for kind in ORDER:
        entry = {"kind": kind, "path": str(folder)}
        if kind == "depth" and (folder / "cameras.json").exists():
            entry["normals"] = "from_depth"  # normals can be computed from depth and camera intrinsics
        try:
            source = open_source(entry)
            spaces = source.spaces()
            if _has_single_class(spaces) or next(iter(source.records()), None) is None:
                continue
            if kind == "imagefolder" and _has_foreign_classes(folder, spaces):
                continue
            return entry, list(spaces)
        except (MustError, ValueError):
            if kind in LAYOUT_FOLDERS and all((folder / name).is_dir() for name in LAYOUT_FOLDERS[kind]):
                raise
    raise DataError(f"{folder}: no images in a known layout found; known are {', '.join(ORDER)}.")


def _described(entry: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """Return a line that says how a folder is read, and which of its files are not."""
    labels = f"with labels for {', '.join(tasks)}" if tasks else "without labels"
    source = open_source(entry)
    for _ in source.records():
        pass
    skipped = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in sorted(source.skipped.items()))
    hint = next((hint for suffix, hint in FOREIGN.items() if suffix in source.skipped and not tasks), "")
    return f"{entry['path']}: {entry['kind']}, {labels}{f'; not read: {skipped}' if skipped else ''}{hint}"


def _has_foreign_classes(folder: Path, spaces: Mapping[str, LabelSpace]) -> bool:
    """Return True if a class of a folder of classes has files, but not one image: its labels are other files."""
    classes = spaces["classification"].classes if "classification" in spaces else ()
    files = {name: list(folder.glob(f"**/{glob.escape(name)}/**/*.*")) for name in classes}
    return any(found and not any(file.suffix.lower() in IMAGE_SUFFIXES for file in found) for found in files.values())


def _has_single_class(spaces: Mapping[str, LabelSpace]) -> bool:
    """Return True for a classification set of one class: photos/holiday/*.jpg is an unlabelled folder."""
    return "classification" in spaces and len(spaces["classification"].classes) == 1


def _name(folder: Path) -> str:
    """Return a name for the set in a folder, which is one in YAML without quotes as well."""
    name = re.sub(r"[^a-z0-9_]", "_", folder.resolve().name.lower())[:MOST_LETTERS]
    return name if name[:1].isalpha() and yaml.safe_load(name) == name else f"set_{name}"


def _run_name(stem: str) -> str:
    """Return the name of a recipe in a file `stem`.yaml, quoted where YAML would take it for a number or a constant."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:MOST_LETTERS] or "recipe"
    return name if yaml.safe_load(name) == name else json.dumps(name)


def _from_recipe(path: str, to: Path) -> str:
    """Return a path as the recipe `to` has to state it: relative to its folder, unless it was given as absolute."""
    return path if os.path.isabs(path) else os.path.relpath(os.path.abspath(path), os.path.abspath(to.parent))


def _settings(entry: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {_quoted(value) if key == 'path' else value}" for key, value in entry.items())


def _quoted(path: str) -> str:
    """Return a path in quotes as YAML, which takes JSON's: with escapes for all signs but those that can be shown."""
    return json.dumps(escape(path), ensure_ascii=not path.isprintable())


def _teacher(name: str, task: str) -> str:
    return SUPERVISED.format(name=f"{name}_{task}", task=task, data=name, metric=METRIC[task])
