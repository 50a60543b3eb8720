"""Write a first recipe for a user's folders of images, from what the folders contain."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from inspect import getattr_static
from pathlib import Path
from typing import Any

import yaml

from ingest.ingest import open_source
from pipeline.data.bands import BAND_SUFFIXES, RGB, channels_of, inspect_pixels
from pipeline.errors import ConfigError, DataError, error_context
from pipeline.recipe.plugins import modules
from pipeline.recipe.reader import escape
from pipeline.sources import BaseSource, SourceRecord
from pipeline.sources._splits import parse_split
from pipeline.storage.path import StoragePath, is_hidden, subfolders, walk

GENERAL = ("rasters", "normals", "masks", "depth", "imagefolder", "parquet", "webdataset", "csv", "folder")
"""Source kinds whose layouts others may have as well, the most specific first. All other kinds are asked before them,
by name: the first that recognises a folder reads it."""
NO_PICTURES = (".tif", ".tiff", *BAND_SUFFIXES)
"""Ends of the names of images that may be no pictures."""
HINTS = {
    ".txt": ". If these are YOLO's labels: name their classes in a `data.yaml` or `classes.txt` for `kind: yolo`",
    ".xml": ". If these are Pascal VOC's labels: `kind: voc` reads them, but none has an <object> with a <bndbox>",
    ".json": ". If these are COCO's: `kind: coco` takes them as `annotations: {train: FILE}`",
}
"""What to do with label files that no kind reads, by their suffix."""

SUPERVISED = """\
  {name}:
    kind: supervised
    task: {task}
    data: {data}
    backbone: resnet18      # any timm model
    # weights: timm         # published weights: `timm` downloads them; a path or package:... does not
    image_size: 192
    epochs: 20
"""
REQUIRE = "    # require: {{{metric}: 0.3}}   # a teacher worse than this on held-out images may not label\n"

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
PLAIN = re.compile(r"[A-Za-z][\w./-]*")
"""Text that needs no quotes in YAML, words of its own such as `no` apart."""
MOST_WRAPPINGS = 4
"""Folders around a set that hold nothing but the next one."""
MOST_LETTERS = 60
"""Of names: a teacher's is the set's with the task behind it."""
METRIC = {
    "classification": "accuracy",
    "multilabel": "map",
    "detection": "ap50",
    "masks": "ap50",
    "keypoints": "ap50",
    "segmentation": "miou",
    "depth": "delta_1.25",
    "normals": "within_11.25",
    "regression": "r2",
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
    entries = {name: {**each.entry, "path": _from_recipe(each.entry["path"], to)} for name, each in detected.items()}
    data = "".join(f"  {name}: {{{_settings(entry)}}}\n" for name, entry in entries.items())
    teachers = "".join(_teacher(name, task) for name, each in detected.items() for task in each.tasks)
    text = RECIPE.format(
        file=to.name,
        name=_run_name(to.stem),
        data=data,
        teachers=teachers or "  {}  # none of the folders has labels: add a pretrained teacher\n",
        pool=", ".join(detected),
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")
    lines = [each.describe() for each in detected.values()]
    if not teachers:
        lines.append("None of them has labels: add a teacher to the recipe, such as a pretrained one.")
    return lines


@dataclasses.dataclass(frozen=True)
class DetectedSource:
    """A folder, opened as the kind that recognises it."""

    entry: Mapping[str, Any]
    """Its entry in the recipe's `data`."""
    source: BaseSource
    tasks: tuple[str, ...]
    """The tasks that a teacher can learn from its labels."""

    def describe(self) -> str:
        """Return a line that says how the folder is read, and which of its files are not."""
        labels = f"with labels for {', '.join(self.tasks)}" if self.tasks else "without labels"
        settings = _settings({key: value for key, value in self.entry.items() if key not in ("kind", "path")})
        how = f"{self.entry['kind']}{f' ({settings})' if settings else ''}, {labels}"
        return f"{self.entry['path']}: {how}{self._left_out()}"

    def _left_out(self) -> str:
        for _ in self.source.records():  # fills `skipped` and `problems`
            pass
        known = {name for name, *_ in self.source.file_stamps()}
        root = StoragePath.of(self.entry["path"])
        unread = collections.Counter(file.suffix for file in walk(root) if file.relative_to(root) not in known)
        unread |= self.source.skipped
        listing = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in sorted(unread.items()))
        hint = next((hint for suffix, hint in HINTS.items() if unread[suffix] > 1 and not self.tasks), "")
        return (f"; not read: {listing}{hint}" if listing else "") + self._first_problem()

    def _first_problem(self) -> str:
        problems = [*self.source.problems, *self._bad_image()]
        if not problems:
            return ""
        name, reason = problems[0]
        count = len(problems)
        return f"; can't be used: {name}: {reason}{f', and {count - 1:,} more' if count > 1 else ''}"

    def _bad_image(self) -> Iterator[tuple[str, str]]:
        """Yield the name of the first image, and why it can't be read, if it can't."""
        first = _first_image(self.source)
        try:
            if first and first.name.lower().endswith(NO_PICTURES):
                inspect_pixels(first.read(), self.source.channels)
        except DataError as error:
            yield first.name if first else "", str(error)


def detect_source(folder: Path) -> DetectedSource:
    """Open a folder as the first kind that recognises it, or where all of it lies in one subfolder, that one.

    Raises DataError if it is no folder or no kind does, and what reading it as this kind raises.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder." if not folder.exists() else f"{folder}: is no folder.")
    inner = _innermost(folder)
    found = _detect(inner) if inner != folder else None
    if found is None or found.entry["kind"] == "folder":
        found = _detect(folder)
    if found is None:
        raise DataError(f"{folder}: no images in a known layout found; known are {', '.join(_kinds())}.")
    return found


def _innermost(folder: Path) -> Path:
    """Return the folder at the end of those that hold one folder and nothing else, as archives are unpacked."""
    for _ in range(MOST_WRAPPINGS):
        inner = subfolders(StoragePath.of(str(folder)))
        holds_files = any(each.is_file() and not is_hidden(each.name) for each in folder.iterdir())
        if len(inner) != 1 or holds_files or parse_split(inner[0].name):
            break
        folder = folder / inner[0].name
    return folder


def _detect(folder: Path) -> DetectedSource | None:
    for kind, source_class in _kinds().items() if folder.is_dir() else ():
        if (settings := source_class.detect(str(folder))) is not None:
            entry = {"kind": kind, "path": str(folder), **settings}
            with error_context(f"{folder}, as {kind}"):
                channels = _channels(entry)
                entry |= {"channels": channels} if channels != RGB else {}
                source = open_source(entry)
                spaces = source.spaces().items()
                next(iter(source.records()), None)
            # one class is nothing to tell apart
            tasks = tuple(task for task, space in spaces if task != "classification" or len(space.classes) > 1)
            return DetectedSource(entry, source, tasks)
    return None


def _channels(entry: Mapping[str, Any]) -> int:
    """Return the channels of a set's first image, RGB for a picture."""
    first = _first_image(open_source({**entry, "channels": 1}))  # of any number but RGB, files have the same suffixes
    return channels_of(first.read()) if first and first.name.lower().endswith(NO_PICTURES) else RGB


def _first_image(source: BaseSource) -> SourceRecord | None:
    try:
        return next(iter(source.records()), None)
    except DataError:  # said when the set is opened as its kind
        return None


def _kinds() -> dict[str, type[BaseSource]]:
    """Return the classes of the kinds that can recognise a folder, in the order in which they are asked."""
    found = modules("pipeline.sources")
    ordered = [*(name for name in found if name not in GENERAL), *GENERAL]
    classes = {name: importlib.import_module(found[name]).Source for name in ordered}
    none = getattr_static(BaseSource, "detect")
    return {name: each for name, each in classes.items() if getattr_static(each, "detect") is not none}


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


def _settings(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {_value(value, quoted=key == 'path')}" for key, value in entry.items())


def _value(value: Any, quoted: bool = False) -> str:
    """Return a value of the recipe as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) and not quoted and yaml.safe_load(value) == value else _quoted(value)
    return json.dumps(value)


def _quoted(text: str) -> str:
    """Return a text in quotes as YAML, which takes JSON's: with escapes for all signs but those that can be shown."""
    return json.dumps(escape(text), ensure_ascii=not text.isprintable())


def _teacher(name: str, task: str) -> str:
    require = REQUIRE.format(metric=METRIC[task]) if task in METRIC else ""
    return SUPERVISED.format(name=f"{name}_{task}", task=task, data=name) + require
