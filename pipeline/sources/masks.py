"""Images and masks of class ids, pixel by pixel: `images/<split>/x.jpg` with `masks/<split>/x.png`, or without splits.

A mask is a one-channel image of class ids: 8 or 16 bits, or the indices of a palette, never its colours. Ids may have
gaps; classes are in order of their ids, and ids with the same name are one class. An image without a mask has no label.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.data.decode import decode_numbers
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import SourceRecord, TrueLabels
from pipeline.sources._classes import check_distinct, index_classes
from pipeline.sources._detection import has_folders
from pipeline.sources._files import FileSource, check_size, read_image
from pipeline.storage.json_text import load_json
from pipeline.storage.path import StoragePath, require_exists
from pipeline.stores.labels import IGNORE, LabelSpace

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


class Source(FileSource):
    """Reads the folders. Raises ConfigError if a path does not exist or the classes can't be read."""

    def __init__(self, config: Config) -> None:
        self.config = config
        root = require_exists(StoragePath.of(config.path), "path", "folder")
        folders = [require_exists(root / config.images, "images", "folder")]
        folders.append(require_exists(root / config.masks, "masks", "folder"))
        listed = config.classes
        files = [require_exists(root / listed, "classes", "file")] if isinstance(listed, str) else []
        super().__init__(root, folders, files)
        names, void = _read_classes(files[0]) if files else (_by_id(listed), [])
        ignored = sorted({*config.ignore, *void})
        self._classes, indices = index_classes({i: name for i, name in names.items() if i not in ignored})
        if not self._classes:
            raise ConfigError(f"classes: none of {len(names)} is left, because ids {ignored} are ignored")
        check_distinct(self._classes)
        self._index_by_id = np.full(IGNORE + 1, UNLISTED, np.int32)
        self._index_by_id[list(indices)] = list(indices.values())
        self._index_by_id[ignored] = IGNORE

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        return {} if has_folders(path, "images", "masks") else None

    def spaces(self) -> dict[str, LabelSpace]:
        return {"segmentation": LabelSpace("segmentation", self._classes)}

    def read_records(self) -> Iterator[SourceRecord]:
        for image, mask in self._pair_files("mask"):
            split = self._split(image.relative_to(self.folders[0]), self.config.hold_out)
            if split is None:
                self.problems.append((image.relative_to(self.root), "lies in no split folder"))
                continue
            truth = functools.partial(self._truth, mask)
            yield SourceRecord(
                image.relative_to(self.root), split, functools.partial(read_image, image), truth, image.stamp
            )

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


def _read_classes(file: StoragePath) -> tuple[dict[int, str], list[int]]:
    """Return the names by id and the ids to ignore that a JSON file states. Raises ConfigError on other content."""
    try:
        content = load_json(file.read())
        nested = isinstance(content, dict) and "classes" in content
        names = _by_id(content["classes"] if nested else content)
        ignored = content.get("ignore_index", []) if nested else []
        return names, [_id(number) for number in (ignored if isinstance(ignored, list) else [ignored])]
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f'classes: {file} is not JSON like ["sky"] or {{"0": "sky"}} ({error})') from error


def _by_id(names: Any) -> dict[int, str]:
    pairs = list(enumerate(names) if isinstance(names, list | tuple) else names.items())
    by_id: dict[int, str] = {}
    for number, name in pairs:
        if not isinstance(name, str):
            raise TypeError(f"the class {name!r} of id {number} is no text")
        if _id(number) in by_id:
            raise ValueError(f"id {number} has two classes, {by_id[_id(number)]!r} and {name!r}")
        by_id[_id(number)] = name
    return by_id


def _id(number: Any) -> int:
    """Return an id, given as a whole number or in digits, as keys of JSON are."""
    digits = isinstance(number, str) and number.isascii() and number.isdigit()
    if (digits or type(number) is int) and 0 <= int(number) <= IGNORE:
        return int(number)
    raise ValueError(f"id {number!r} is no whole number from 0 to {IGNORE}")
