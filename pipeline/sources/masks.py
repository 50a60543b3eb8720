"""Images and masks of class ids, pixel by pixel: `images/<split>/x.jpg` with `masks/<split>/x.png`, or without splits.

A mask is a one-channel image of class ids: 8 or 16 bits, or the indices of a palette, never its colours. Ids may have
gaps; classes are in order of their ids, and ids with the same name are one class. An image without a mask has no label.
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
from pipeline.sources._classes import check_distinct, index_classes
from pipeline.sources._files import check_size, count_images, images_under, pair_files, require_records, stamp_files
from pipeline.sources._splits import Split, has_split_folders, parse_split, split_by_hash
from pipeline.storage.path import StoragePath, require_exists
from pipeline.stores.labels import LabelSpace

IGNORE = 65535
"""Stored in the place of a class where a pixel has no label."""
UNLISTED = -1
ClassId = Annotated[int, Field(ge=0, lt=IGNORE)]


class Config(SourceConfig):
    """Folders of images and of masks below `path`."""

    kind: Literal["masks"] = "masks"
    path: str
    """Folder or URL."""
    images: str = "images"
    """Folder of the images, relative to `path`."""
    masks: str = "masks"
    """Folder of the masks, relative to `path`."""
    classes: str | dict[ClassId, str] | tuple[str, ...] = "classes.json"
    """Names by id, names in order of ids from 0, or a JSON file with either, which may be under the key `classes`
    beside an `ignore_index`."""
    ignore: tuple[Annotated[int, Field(ge=0, le=IGNORE)], ...] = ()
    """Ids of pixels without a label, besides the `ignore_index` in the file of classes."""
    hold_out: Share = 0.2
    """Without split folders: the share that becomes `test`, by the hash of the file's name."""


class Source(BaseSource):
    """Reads the folders. Raises ConfigError if a path does not exist or the classes can't be read."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = require_exists(StoragePath.of(config.path), "path", "folder")
        self.images = require_exists(self.root / config.images, "images", "folder")
        self.masks = require_exists(self.root / config.masks, "masks", "folder")
        self._files: list[StoragePath] = []
        names, ignored = self._read_classes()
        self.ignored = sorted({*config.ignore, *ignored})
        self._classes, indices = index_classes({i: name for i, name in names.items() if i not in self.ignored})
        if not self._classes:
            raise ConfigError(f"classes: none of {len(names)} is left, because ids {self.ignored} are ignored")
        check_distinct(self._classes)
        self._index_by_id = _index_table(indices, self.ignored)

    def _read_classes(self) -> tuple[dict[int, str], list[int]]:
        if not isinstance(self.config.classes, str):
            return _by_id(self.config.classes), []
        self._files = [require_exists(self.root / self.config.classes, "classes", "file")]
        return read_classes(self._files[0])

    @functools.cached_property
    def _in_splits(self) -> bool:
        return has_split_folders(self.images)

    def spaces(self) -> dict[str, LabelSpace]:
        return {"segmentation": LabelSpace("segmentation", self._classes)}

    def records(self) -> Iterator[SourceRecord]:
        self.problems.clear()
        return require_records(self._records(), self.images)

    def _records(self) -> Iterator[SourceRecord]:
        pairs, unpaired = pair_files(self.images, self.masks)
        self.problems.extend((mask.relative_to(self.root), "a mask without an image") for mask in unpaired)
        for image, mask in pairs:
            split = self._split(image)
            if split is None:
                self.problems.append((image.relative_to(self.root), "lies in no split folder"))
                continue
            truth = functools.partial(self._truth, mask)
            yield SourceRecord(image.relative_to(self.root), split, image.read, truth, image.stamp)

    def _split(self, image: StoragePath) -> Split | None:
        name = image.relative_to(self.images)
        return parse_split(name.split("/")[0]) if self._in_splits else split_by_hash(name, self.config.hold_out)

    def _truth(self, mask: StoragePath | None, size: tuple[int, int]) -> TrueLabels:
        if mask is None:
            return TrueLabels(notes=["no mask"])
        try:
            ids = decode_numbers(mask.read())
        except DataError as error:
            raise DataError(f"mask {mask.relative_to(self.root)}: {error}") from error
        check_size((ids.shape[1], ids.shape[0]), size, f"the mask {mask.relative_to(self.root)} is")
        classes = self._index(ids)
        return TrueLabels({"segmentation": {"classes": classes, "confidence": np.ones(classes.shape, np.float32)}})

    def _index(self, ids: NDArray[Any]) -> NDArray[np.uint16]:
        """Return the class indices (H, W) of the ids in a file."""
        if ids.dtype.kind == "f" or ids.min() < 0 or ids.max() > IGNORE:
            raise DataError(f"the mask holds {ids.dtype} from {ids.min()} to {ids.max()}, not ids from 0 to {IGNORE}")
        indices = self._index_by_id[ids]
        if (unlisted := indices == UNLISTED).any():
            listing = ", ".join(str(i) for i in np.unique(ids[unlisted])[:10])
            raise DataError(f"class id {listing} is not among the classes; list it in `classes` or in `ignore`")
        return indices.astype(np.uint16)

    def count(self) -> int:
        return count_images(self.images)

    def file_stamps(self) -> list[tuple[str, int, int]]:
        return stamp_files(self.root, [*self._files, *images_under(self.images), *images_under(self.masks)])


def read_classes(file: StoragePath) -> tuple[dict[int, str], list[int]]:
    """Return the names by id and the ids to ignore that a JSON file states. Raises ConfigError on other content."""
    try:
        content = json.loads(file.read())
        nested = isinstance(content, dict) and "classes" in content
        names = _by_id(content["classes"] if nested else content)
        ignored = content.get("ignore_index", []) if nested else []
        return names, [_id(number) for number in (ignored if isinstance(ignored, list) else [ignored])]
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f'classes: {file} is not JSON like ["sky"] or {{"0": "sky"}} ({error})') from error


def _by_id(names: Any) -> dict[int, str]:
    pairs = enumerate(names) if isinstance(names, list | tuple) else names.items()
    return {_id(number): str(name) for number, name in pairs}


def _id(number: Any) -> int:
    if 0 <= int(number) <= IGNORE:
        return int(number)
    raise ValueError(f"id {number} is not from 0 to {IGNORE}")


def _index_table(indices: dict[int, int], ignored: list[int]) -> NDArray[np.int32]:
    """Return the class index of every id from 0 to 65535: IGNORE for ignored ids, UNLISTED for those of no class."""
    table = np.full(IGNORE + 1, UNLISTED, np.int32)
    table[list(indices)] = list(indices.values())
    table[ignored] = IGNORE
    return table
