"""Images and masks of class ids, pixel by pixel: `images/<split>/x.jpg` with `masks/<split>/x.png`, or without splits.

A mask is a one-channel image whose numbers are class ids: 8 or 16 bits, or the indices of a palette, never its
colours. Ids may have gaps; the classes are numbered in order of their ids, and ids of one name are one class.
An image without a mask is an image without a label, and counted.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.data.decode import decode_numbers
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import BaseSource, SourceRecord, TrueLabels
from pipeline.sources._classes import check_distinct, number_classes
from pipeline.sources._files import at_least_one, check_size, count_images, images_under, pair, stamp_files
from pipeline.sources._splits import Split, has_split_folders, split_by_hash, split_named
from pipeline.storage.path import StoragePath, existing
from pipeline.stores.labels import LabelSpace

IGNORE = 65535
UNLISTED = -1
ClassId = Annotated[int, Field(ge=0, lt=IGNORE)]


class Config(SourceConfig):
    """Folders of images and of masks below `path`."""

    kind: Literal["masks"] = "masks"
    path: str
    """Folder or URL."""
    images: str = "images"
    """Folder of the images, from `path`."""
    masks: str = "masks"
    """Folder of the masks, from `path`."""
    classes: str | dict[ClassId, str] | tuple[str, ...] = "classes.json"
    """Names by id, names in order of ids from 0, or a JSON file with either, which may sit under the key `classes`
    beside an `ignore_index`."""
    ignore: tuple[Annotated[int, Field(ge=0, le=IGNORE)], ...] = ()
    """Ids of pixels that have no label, besides those the file of classes names."""
    hold_out: Share = 0.2
    """Without split folders: the share that becomes `test`, drawn by the hash of the file's name."""


class Source(BaseSource):
    """Opens the folders. Raises ConfigError if a path is not there or the classes can't be read."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = existing(StoragePath.of(config.path), "path", "folder")
        self.images = existing(self.root / config.images, "images", "folder")
        self.masks = existing(self.root / config.masks, "masks", "folder")
        self._files: list[StoragePath] = []
        names, ignored = self._read_classes()
        self.ignored = sorted({*config.ignore, *ignored})
        self._classes, places = number_classes({i: name for i, name in names.items() if i not in self.ignored})
        if not self._classes:
            raise ConfigError(f"classes: none is left of {len(names)}, ids {self.ignored} being ignored")
        check_distinct(self._classes)
        self._table = _table(places, self.ignored)
        self._problems: list[tuple[str, str]] = []

    def _read_classes(self) -> tuple[dict[int, str], list[int]]:
        if not isinstance(self.config.classes, str):
            return _by_id(self.config.classes), []
        self._files = [existing(self.root / self.config.classes, "classes", "file")]
        return read_classes(self._files[0])

    @functools.cached_property
    def _in_splits(self) -> bool:
        return has_split_folders(self.images)

    def spaces(self) -> dict[str, LabelSpace]:
        return {"segmentation": LabelSpace("segmentation", self._classes)}

    def records(self) -> Iterator[SourceRecord]:
        self._problems = []
        return at_least_one(self._records(), self.images)

    def _records(self) -> Iterator[SourceRecord]:
        pairs, alone = pair(self.images, self.masks)
        self._problems = [(mask.under(self.root), "a mask without an image") for mask in alone]
        for image, mask in pairs:
            split = self._split(image)
            if split is None:
                self._problems.append((image.under(self.root), "lies in no split folder"))
                continue
            truth = functools.partial(self._truth, mask)
            yield SourceRecord(image.under(self.root), split, image.read, truth, image.stamp)

    def _split(self, image: StoragePath) -> Split | None:
        name = image.under(self.images)
        return split_named(name.split("/")[0]) if self._in_splits else split_by_hash(name, self.config.hold_out)

    def _truth(self, mask: StoragePath | None, size: tuple[int, int]) -> TrueLabels:
        if mask is None:
            return TrueLabels(notes=["no mask"])
        try:
            ids = decode_numbers(mask.read())
        except DataError as error:
            raise DataError(f"mask {mask.under(self.root)}: {error}") from error
        check_size((ids.shape[1], ids.shape[0]), size, f"the mask {mask.under(self.root)} is")
        classes = self._number(ids)
        return TrueLabels({"segmentation": {"classes": classes, "confidence": np.ones(classes.shape, np.float32)}})

    def _number(self, ids: NDArray[Any]) -> NDArray[np.uint16]:
        """Ids as in the file -> places among the classes."""
        if ids.dtype.kind == "f" or ids.min() < 0 or ids.max() > IGNORE:
            raise DataError(f"the mask holds {ids.dtype} from {ids.min()} to {ids.max()}, not ids from 0 to {IGNORE}")
        numbered = self._table[ids]
        if (strange := numbered == UNLISTED).any():
            found = ", ".join(str(i) for i in np.unique(ids[strange])[:10])
            raise DataError(f"class id {found} is not among the classes; list it in `classes` or in `ignore`")
        return numbered.astype(np.uint16)

    def count(self) -> int:
        return count_images(self.images)

    def problems(self) -> list[tuple[str, str]]:
        return self._problems

    def stamp(self) -> list[tuple[str, int, int]]:
        return stamp_files(self.root, [*self._files, *images_under(self.images), *images_under(self.masks)])


def read_classes(file: StoragePath) -> tuple[dict[int, str], list[int]]:
    """A JSON file of classes -> names by id, and the ids to ignore. Raises ConfigError if it holds something else."""
    try:
        content = json.loads(file.read())
        known = isinstance(content, dict) and "classes" in content
        names = _by_id(content["classes"] if known else content)
        ignored = content.get("ignore_index", []) if known else []
        return names, [_id(number) for number in (ignored if isinstance(ignored, list) else [ignored])]
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f'classes: {file} is no JSON like ["sky"] or {{"0": "sky"}} ({error})') from error


def _by_id(names: Any) -> dict[int, str]:
    pairs = enumerate(names) if isinstance(names, list | tuple) else names.items()
    return {_id(number): str(name) for number, name in pairs}


def _id(number: Any) -> int:
    if 0 <= int(number) <= IGNORE:
        return int(number)
    raise ValueError(f"id {number} is not from 0 to {IGNORE}")


def _table(places: dict[int, int], ignored: list[int]) -> NDArray[np.int32]:
    """What each id from 0 to 65535 becomes."""
    table = np.full(IGNORE + 1, UNLISTED, np.int32)
    table[list(places)] = list(places.values())
    table[ignored] = IGNORE
    return table
