"""Boxes of Pascal VOC: an XML file per image, in `Annotations/` with the images in `JPEGImages/`, or beside the image.

Splits are the lists `ImageSets/Main/train.txt`, `val.txt`, `test.txt` and `trainval.txt` if there are any, or else
folders called like splits. Boxes count pixels from 1, and their last pixel belongs to them. Difficult objects are left
out, as crowds are.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from xml.etree.ElementTree import Element

from pipeline.errors import DataError
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources._boxes import BoxShape, as_numbers
from pipeline.sources._files import check_size
from pipeline.sources._label_files import LabelFileSource, names_in_files, pairing_key
from pipeline.sources._splits import Split, hold_out_share, names_of_split
from pipeline.sources._xml import MEBIBYTE, read_xml, text_of
from pipeline.storage.path import StoragePath, require_exists

LISTS = "ImageSets/Main"
IMAGES = "JPEGImages"
LABEL_IMAGES = ("SegmentationClass", "SegmentationObject")
"""Folders of VOC whose images are labels."""
MOST_BYTES = 16 * MEBIBYTE
EDGES = ("xmin", "ymin", "xmax", "ymax")
LOOKED_INTO = 100
"""Files that tell whether a folder is of this kind."""
HELD_OUT_FIRST: tuple[Split, ...] = ("test", "val", "train")
"""Splits, in the order in which one has an image that several list."""
FLAGS = {None: False, "0": False, "1": True}


class Config(SourceConfig):
    """A folder with images and their XML files."""

    kind: Literal["voc"] = "voc"
    path: str
    """Folder or URL."""
    classes: tuple[str, ...] = ()
    """Names of the classes in order; by default all that occur, sorted, for which every plan reads all XML files."""
    first_pixel: Literal[0, 1] = 1
    """The number of the first pixel of a row: 1 in VOC, where a box ends with its last pixel; 0 for tools whose boxes
    count from 0 and end behind it."""
    hold_out: Share = 0.2
    """Where no split but train is stated, by lists or folders: the share that becomes `test`, by the hash of the file's
    name."""


class Source(LabelFileSource):
    """Reads the folder. Raises ConfigError if it does not exist; later DataError on class names that are alike."""

    def __init__(self, config: Config) -> None:
        self.config = config
        folder = require_exists(StoragePath.of(config.path), "path", "folder") / LISTS
        names = {name: split for split in HELD_OUT_FIRST for name in names_of_split(split)} | {"trainval": "train"}
        lists = [(split, folder / f"{name}.txt") for name, split in names.items()]
        self._lists = [(split, file) for split, file in lists if file.exists()]
        super().__init__(config.path, ".xml", config.hold_out, [file for _, file in self._lists])
        self._has_own_folder = (self.root / IMAGES).is_folder()

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        """Return the key `classes` for a folder with XML files that mark objects, so that no plan has to read all."""
        source = cls(Config(path=path))
        if not any(map(_marks_objects, itertools.islice(source.label_files(), LOOKED_INTO))):
            return None
        return {"classes": list(names_in_files(source))}

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        return self.config.classes or names_in_files(self)

    def is_image(self, name: str) -> bool:
        if self._has_own_folder:
            return name.startswith(f"{IMAGES}/")
        return not set(name.split("/")[:-1]) & set(LABEL_IMAGES)

    def is_label(self, file: StoragePath) -> bool:
        try:
            return bool(_read(file))
        except DataError:
            return True  # it may have been one

    def splits(self, names: Sequence[str]) -> Mapping[str, Split | None]:
        """Return the splits of the images that the lists name; without lists, those of folders."""
        if not self._lists:
            return super().splits(names)
        by_stem = {pairing_key(name): name for name in names}
        stated: dict[str, Split | None] = {}
        for split, file in self._lists:
            listed = list(_listed(file))
            stated = {**{by_stem[stem]: split for stem in listed if stem in by_stem}, **stated}
            if missing := [stem for stem in listed if stem not in by_stem]:
                reason = f"lists {len(missing)} images that are not there, first {missing[0]!r}"
                self.problems.append((file.relative_to(self.root), reason))
        return hold_out_share({name: stated[name] for name in names if name in stated}, self.hold_out)

    def read_shapes(self, file: StoragePath, size: tuple[int, int] | None) -> list[BoxShape]:
        annotation = _read(file)
        sides = as_numbers([annotation.findtext("size/width"), annotation.findtext("size/height")], 2)
        if size and sides and all(sides):
            check_size((int(sides[0]), int(sides[1])), size, "it says")
        objects = annotation.findall("object")
        return [self._shape(f"object {number}", element) for number, element in enumerate(objects, 1)]

    def _shape(self, place: str, element: Element) -> BoxShape:
        name, difficult = text_of(element, "name"), text_of(element, "difficult")
        if difficult not in FLAGS:
            return BoxShape(place, name, None, f"object with difficult {difficult!r:.20} dropped")
        edges = as_numbers([element.findtext(f"bndbox/{edge}") for edge in EDGES], 4)
        if FLAGS[difficult] or edges is None:
            reason = "difficult object left out" if FLAGS[difficult] else None
            return BoxShape(place, name, None, reason, by_intent=FLAGS[difficult])
        x0, y0, x1, y1 = edges
        first = self.config.first_pixel
        return BoxShape(place, name, (x0 - first, y0 - first, x1, y1))


def _read(file: StoragePath) -> Element:
    return read_xml(file, "annotation", MOST_BYTES)


def _marks_objects(file: StoragePath) -> bool:
    try:
        return _read(file).find("object/bndbox") is not None
    except DataError:
        return False


def _listed(file: StoragePath) -> Iterator[str]:
    """Yield the stems of a list: one a line, in lists of a class with 1, 0 or -1 behind it."""
    try:
        lines = file.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no text in UTF-8 ({error})") from error
    for line in map(str.strip, lines):
        stem, _, flag = line.rpartition(" ")
        if line:
            yield stem.strip() if stem and flag in ("-1", "0", "1") else line
