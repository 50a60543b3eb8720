"""Lists of a set's images by split: `train.txt`, `val.txt`, `test.txt`, with a stem or path in each line.

Names in a list open no file: they are compared with those of the images that the set's folders hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pipeline.errors import DataError
from pipeline.sources._files import IMAGE_SUFFIXES
from pipeline.sources._splits import SPLITS, Split, names_of_split
from pipeline.storage.path import StoragePath, require_exists

PLACES = ("{}.txt", "ImageSets/Segmentation/{}.txt")
"""Where lists are found that the recipe does not name; the second is Pascal VOC's."""


class ListedImages(NamedTuple):
    """Splits of the images that lists name, by the image's number, and (place, reason) of lines that name none."""

    splits: dict[int, Split]
    problems: list[tuple[str, str]]


def find_lists(root: StoragePath, stated: Mapping[Split, str]) -> dict[Split, StoragePath]:
    """Return the list of each split: those that the recipe states, or those in the usual places."""
    if stated:
        return {split: require_exists(root / name, f"lists.{split}", "file") for split, name in stated.items()}
    found: dict[Split, StoragePath] = {}
    for place in PLACES:
        for split in SPLITS:
            files = (root / place.format(called) for called in names_of_split(split))
            file = next((file for file in files if file.exists()), None)
            if file and not found.get(split):
                found[split] = file
        if found:
            break
    return found


def assign_splits(lists: Mapping[Split, StoragePath], images: Iterable[Iterable[str]]) -> ListedImages:
    """Return the splits of images, given the names that each may be listed by: paths with `/`, without a suffix.

    A line is a path, which may begin or end otherwise (`/data/street/images/a.jpg masks/a.png`): then the file's own
    name tells, if one image alone has it.
    """
    index = _ImageIndex(images)
    splits: dict[int, Split] = {}
    places: dict[int, str] = {}
    problems: list[tuple[str, str]] = []
    for split, file in lists.items():
        for number, line in _lines(file):
            place = f"{file.name} line {number}"
            image = index.find(line)
            if image is None:
                problems.append((place, f"names {line!r}, but no image of the set is called so, or several are"))
            elif image in splits:
                problems.append((place, f"names {line!r}, which {places[image]} lists already"))
            else:
                splits[image], places[image] = split, place
    return ListedImages(splits, problems)


class _ImageIndex:
    """Finds images by what a list calls them."""

    def __init__(self, images: Iterable[Iterable[str]]) -> None:
        self._by_path: dict[str, int | None] = {}
        self._by_name: dict[str, int | None] = {}
        for number, paths in enumerate(images):
            for path in paths:
                _add(self._by_path, path, number)
                _add(self._by_name, path.rpartition("/")[2], number)

    def find(self, line: str) -> int | None:
        """Return the number of the image that a line names, None if it names none, or more than one."""
        for text in dict.fromkeys((line, line.split(maxsplit=1)[0])):
            path = text.replace("\\", "/").removeprefix("./")
            for name in dict.fromkeys((path, _without_suffix(path))):
                image = self._by_path.get(name, self._by_name.get(name.rpartition("/")[2]))
                if image is not None:
                    return image
        return None


def _add(index: dict[str, int | None], name: str, number: int) -> None:
    """Add a name of an image; one that two images have finds none of them."""
    index[name] = number if index.get(name, number) == number else None


def _without_suffix(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return stem if suffix.lower() in IMAGE_SUFFIXES else path


def _lines(file: StoragePath) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a list that are not blank."""
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no text in UTF-8 ({error})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()
