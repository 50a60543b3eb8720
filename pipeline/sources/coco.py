"""Boxes in COCO's JSON format (https://cocodataset.org/#format-data), one file per split, and folders of images.

Classes are the categories, or their supercategories, in order of their (first) id; ids may have gaps, and categories
of one name are one class. Boxes of crowds are left out. An image that the JSON names without boxes is one without
things in it; an image that it does not name is no part of the set.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.errors import ConfigError, DataError
from pipeline.recipe.source import SourceConfig
from pipeline.sources import BaseSource, SourceRecord, TrueLabels
from pipeline.sources._classes import number_classes
from pipeline.sources._files import at_least_one, check_size, images_under, stamp_files
from pipeline.sources._splits import SPLITS, Split
from pipeline.storage.path import StoragePath, existing
from pipeline.stores.labels import LabelSpace

ANNOTATIONS = ("instances_{}.json", "annotations/instances_{}.json", "annotations/instances_{}2017.json")
IMAGES = ("images/{}", "{}", "images/{}2017", "{}2017", "images")


class Config(SourceConfig):
    """A folder `path` with annotations and images in the usual places, or wherever the two options say."""

    kind: Literal["coco"] = "coco"
    path: str
    """Folder or URL."""
    classes: Literal["category", "supercategory"] = "category"
    """What is told apart: the file's categories, or the coarser groups that it puts them in."""
    annotations: dict[Split, str] = Field(default_factory=dict)
    """JSON file per split, from `path`. By default `instances_<split>.json` or `instances_<split>2017.json`,
    in `path` or in `annotations`."""
    images: dict[Split, str] = Field(default_factory=dict)
    """Folder that a split's file names start from, from `path`. By default `images/<split>`, `<split>` or `images`."""


@dataclasses.dataclass(frozen=True)
class _Annotated:
    """One JSON file, read: its categories by id, its images in order of their names, their annotations by image id."""

    split: Split
    images: StoragePath
    categories: dict[int, str]
    entries: list[dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]


class Source(BaseSource):
    """Opens the set. Raises ConfigError if a path is not there; DataError, later, on JSON that is not COCO's."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = existing(StoragePath.of(config.path), "path", "folder")
        self._files = {split: file for split in SPLITS if (file := self._find_annotations(split))}
        if not self._files:
            raise ConfigError(
                f"path: no {ANNOTATIONS[0].format('train')} in {self.root}; state the files as `annotations`"
            )
        if extra := set(config.images) - set(self._files):
            raise ConfigError(f"images: {sorted(extra)} have no `annotations`")
        self._folders = {split: self._find_images(split) for split in self._files}
        self._problems: list[tuple[str, str]] = []

    def _find_annotations(self, split: Split) -> StoragePath | None:
        if self.config.annotations:
            name = self.config.annotations.get(split)
            return existing(self.root / name, f"annotations.{split}", "file") if name else None
        return next((file for name in ANNOTATIONS if (file := self.root / name.format(split)).exists()), None)

    def _find_images(self, split: Split) -> StoragePath:
        if split in self.config.images:
            return existing(self.root / self.config.images[split], f"images.{split}", "folder")
        for name in IMAGES:
            if (folder := self.root / name.format(split)).is_folder():
                return folder
        tried = ", ".join(name.format(split) for name in IMAGES)
        raise ConfigError(f"path: {self.root} has no images of split {split!r}: there is none of {tried}")

    @functools.cached_property
    def _sets(self) -> list[_Annotated]:
        return [_read(split, file, self._folders[split], self.config.classes) for split, file in self._files.items()]

    @functools.cached_property
    def _numbered(self) -> tuple[tuple[str, ...], dict[int, int]]:
        names: dict[int, str] = {}
        for part in self._sets:
            for number, name in part.categories.items():
                if names.setdefault(number, name) != name:
                    raise DataError(f"{self.root}: category {number} is {names[number]!r} and {name!r} in two splits")
        return number_classes(names)

    def spaces(self) -> dict[str, LabelSpace]:
        return {"detection": LabelSpace("detection", self._numbered[0])}

    def records(self) -> Iterator[SourceRecord]:
        self._problems = []
        return at_least_one(self._records(), self.root)

    def _records(self) -> Iterator[SourceRecord]:
        seen: set[str] = set()
        listed = self._listed()
        for part in self._sets:
            strangers = set(part.annotations) - {entry["id"] for entry in part.entries}
            if strangers:
                first = next(iter(strangers))
                reason = f"has annotations of {len(strangers)} images that it does not list, first {first}"
                self._problems.append((self._files[part.split].under(self.root), reason))
            for entry in part.entries:
                file = part.images / entry["file_name"]
                name = file.under(self.root)
                if name in seen:
                    self._problems.append((name, f"listed twice, the second time in split {part.split!r}"))
                    continue
                seen.add(name)
                file = listed.get(file, file)
                truth = functools.partial(self._truth, entry, part.annotations.get(entry["id"], []))
                yield SourceRecord(name, part.split, file.read, truth, file.stamp)

    def _listed(self) -> dict[StoragePath, StoragePath]:
        """The images of remote folders with what a listing tells of them, so that none has to be asked after."""
        folders = [folder for folder in dict.fromkeys(self._folders.values()) if not folder.local]
        return {file: file for folder in folders for file in images_under(folder)}

    def _truth(self, entry: dict[str, Any], annotations: list[dict[str, Any]], size: tuple[int, int]) -> TrueLabels:
        if entry.get("width") and entry.get("height"):
            check_size((entry["width"], entry["height"]), size, "the annotations say")
        truth, boxes, classes = TrueLabels(), [], []
        for annotation in annotations:
            index = self._numbered[1].get(annotation.get("category_id", -1))
            if index is None:
                raise DataError(f"category id {annotation.get('category_id')} is not among the categories")
            box, note = _box(annotation, size)
            if note:
                truth.notes.append(f"{note}: annotation {annotation.get('id')}")
            if box:
                boxes.append(box)
                classes.append(index)
        truth.values["detection"] = {
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "scores": np.ones(len(boxes), np.float32),
            "classes": np.array(classes, np.int32),
            "size": np.array(size, np.int32),
        }
        return truth

    def count(self) -> int:
        return sum(len(part.entries) for part in self._sets)

    def problems(self) -> list[tuple[str, str]]:
        return self._problems

    def stamp(self) -> list[tuple[str, int, int]]:
        images = [file for folder in dict.fromkeys(self._folders.values()) for file in images_under(folder)]
        return stamp_files(self.root, [*self._files.values(), *images])


def _read(split: Split, file: StoragePath, images: StoragePath, classes: str) -> _Annotated:
    key = "name" if classes == "category" else "supercategory"
    try:
        content = json.loads(file.read())
        categories = {int(category["id"]): str(category[key]) for category in content["categories"]}
        entries = [{**entry, "file_name": entry["file_name"].replace("\\", "/")} for entry in content["images"]]
        if len({entry["id"] for entry in entries}) < len(entries):
            raise ValueError("two images have one id")
        entries.sort(key=lambda entry: (entry["file_name"], entry["id"]))
        annotations = defaultdict(list)
        for annotation in content.get("annotations", []):
            annotations[annotation["image_id"]].append(annotation)
    except KeyError as error:
        raise DataError(f"{file}: not COCO annotations: an entry without {error.args[0]!r}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not COCO annotations ({error})") from error
    return _Annotated(split, images, categories, entries, dict(annotations))


def _box(annotation: dict[str, Any], size: tuple[int, int]) -> tuple[list[float] | None, str | None]:
    """The box as x0, y0, x1, y1 within the image, or None; and what had to be done to it, if anything."""
    if annotation.get("iscrowd"):
        return None, "crowd box dropped"
    given = annotation.get("bbox")
    if not (isinstance(given, list) and len(given) == 4 and all(_finite(number) for number in given)):
        return None, "box without four numbers dropped"
    x, y, width, height = given
    if width <= 0 or height <= 0:
        return None, "empty box dropped"
    whole = [x, y, x + width, y + height]
    box = [min(max(edge, 0.0), limit) for edge, limit in zip(whole, (*size, *size), strict=True)]
    if box[0] >= box[2] or box[1] >= box[3]:
        return None, "box outside the image dropped"
    return box, "box clipped to the image" if box != whole else None


def _finite(number: object) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)
