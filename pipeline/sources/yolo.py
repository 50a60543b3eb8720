"""YOLO's boxes: a text file per image with lines of `class x y width height`, relative to the image, and `data.yaml`.

Images and texts may lie in any of the usual ways: `images/train/a.jpg` with `labels/train/a.txt`, or
`train/images/a.jpg` with `train/labels/a.txt`, or side by side. A line of more numbers is a polygon, and its box the
one around it. An empty text says that there is no object.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipeline.errors import ConfigError, DataError, MustError
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import TrueLabels
from pipeline.sources._boxes import BoxShape, Corners, as_numbers, box_labels, enclose, scaled
from pipeline.sources._classes import index_classes
from pipeline.sources._label_files import LabelFileSource
from pipeline.sources._splits import Split, hold_out_share
from pipeline.sources._yolo import NAME_LISTS, YoloFiles, find_description, listed_images, read_description
from pipeline.storage.path import StoragePath, require_exists, walk

BOX, POLYGON = 4, 6
"""Numbers behind the class: of a box, and at least of a polygon."""
FARTHEST = 2.0
"""Numbers further from the image than this, relative to its sides, are taken for pixels."""
MOST_BYTES, MOST_TEXTS = 16 << 20, 1000
"""Limits of a text, and of how many are looked into for one that holds boxes."""


class Config(SourceConfig):
    """A folder with images, YOLO's texts, and a file that names the classes."""

    kind: Literal["yolo"] = "yolo"
    path: str
    """Folder or URL."""
    data: str | None = None
    """The file that names the classes, and may state the folders of splits, relative to `path`: YAML with the key
    `names`, or a list with a name per line. By default the YAML that has it, or `classes.txt`."""
    classes: tuple[str, ...] = ()
    """Names of the classes in order of their numbers, instead of those in `data`."""
    no_file: Literal["no_objects", "unknown"] = "no_objects"
    """Meaning of an image without a text: that it shows none of the classes, as in YOLO's own training, or that it was
    not labelled."""
    hold_out: Share = 0.2
    """Where no split but train is stated, by `data` or by folders: the share that becomes `test`, by the hash of the
    file's name."""


class Source(LabelFileSource):
    """Reads the folder. Raises ConfigError if a path does not exist or the classes can't be read."""

    def __init__(self, config: Config) -> None:
        self.config = config
        root = require_exists(StoragePath.of(config.path), "path", "folder")
        stated = require_exists(root / config.data, "data", "file") if config.data else None
        file = stated or find_description(root)
        if file is None and not config.classes:
            raise ConfigError(
                f"path: {root} has no data.yaml with `names` and no classes.txt; state the names as `classes`"
            )
        about = read_description(file, root) if file else YoloFiles({}, {}, keypoints=False)
        self._about = about
        self._classes, self._index = index_classes(dict(enumerate(config.classes)) or dict(about.names))
        lists = (root / path for paths in about.splits.values() for path in paths)
        files = [*([file] if file else []), *(path for path in lists if not path.is_folder())]
        super().__init__(config.path, ".txt", config.hold_out, files)

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        """Return {} for a folder whose classes are named, and in which texts hold what YOLO's do."""
        root = StoragePath.of(path)
        if find_description(root) is None:
            return None
        texts = (file for file in walk(root) if file.suffix == ".txt" and file.name not in NAME_LISTS)
        return {} if any(map(_holds_boxes, itertools.islice(texts, MOST_TEXTS))) else None

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    def is_label(self, file: StoragePath) -> bool:
        return _holds_boxes(file)

    def without_file(self, size: tuple[int, int]) -> TrueLabels:
        if self.config.no_file == "unknown":
            return super().without_file(size)
        truth = box_labels([], self._classes, size)
        truth.notes.append("no file of labels: taken for an image without objects")
        return truth

    def splits(self, names: Sequence[str]) -> Mapping[str, Split | None]:
        """Return the splits that `data` states, without images of none; if it states none, those of folders."""
        if not self._about.splits:
            return super().splits(names)
        stated: dict[str, Split | None] = {}
        for split, paths in self._about.splits.items():
            for path in paths:
                file = self.root / path
                listed = names if file.is_folder() else listed_images(file, set(names))
                for name in listed:
                    if not file.is_folder() or name.startswith(f"{path}/"):
                        stated.setdefault(name, split)
        return hold_out_share(stated, self.hold_out)

    def read_shapes(self, file: StoragePath, size: tuple[int, int] | None) -> list[BoxShape]:
        shapes = []
        for place, number, corners in _read_lines(file, self._about.keypoints):
            if number not in self._index:
                raise DataError(f"{place}: the class {number} is none of 0 to {max(self._index)}")
            shapes.append(BoxShape(place, self._index[number], scaled(corners, size or (1, 1))))
        return shapes


def _holds_boxes(file: StoragePath) -> bool:
    """Return True if a text has a line of numbers, and no other."""
    try:
        return bool(_read_lines(file, keypoints=True))
    except MustError:
        return False


def _read_lines(file: StoragePath, keypoints: bool) -> list[tuple[str, int, Corners]]:
    """Return the place, the class's number and the box, relative to the image, of every line that is not blank."""
    if file.stamp()[0] > MOST_BYTES:
        raise DataError(f"has more than {MOST_BYTES:,} bytes")
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"is no text ({error})") from error
    lines = ((f"line {number}", line.split()) for number, line in enumerate(text.splitlines(), 1))
    return [(place, *_read_line(place, words, keypoints)) for place, words in lines if words]


def _read_line(place: str, words: list[str], keypoints: bool) -> tuple[int, Corners]:
    numbers = as_numbers(words, len(words))
    if numbers is None or numbers[0] < 0 or not numbers[0].is_integer():
        raise DataError(f"{place}: {' '.join(words)!r:.80} is not the number of a class and numbers behind it")
    class_number, rest = int(numbers[0]), numbers[1:]
    if any(abs(number) > FARTHEST for number in rest[:BOX] if len(rest) >= BOX):
        raise DataError(f"{place}: {' '.join(words)!r:.80} is not relative to the image, from 0 to 1")
    if len(rest) == BOX or (keypoints and len(rest) > BOX):
        x, y, width, height = rest[:BOX]
        return class_number, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    box = enclose(zip(rest[::2], rest[1::2], strict=True)) if len(rest) >= POLYGON and len(rest) % 2 == 0 else None
    if box is None:
        text = f"{place}: {' '.join(words)!r:.80} has {len(rest)} numbers behind the class"
        raise DataError(f"{text}: 4 are a box, 6, 8, 10 and so on a polygon")
    return class_number, box
