"""Find COCO's JSON files in a folder by their content, and the folders that their images lie in."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic_core import from_json

from pipeline.errors import DataError
from pipeline.sources._coco import read_annotations
from pipeline.sources._files import images_under
from pipeline.sources._splits import Split, split_from_path
from pipeline.storage.path import StoragePath, walk

MOST_FILES = 50
"""JSON files that are looked into, the largest: COCO's hold a whole set each."""
HEAD = 1 << 20
"""Bytes of a file that tell whether it is COCO's."""
SAMPLE = 100
"""Images of a file that are looked for."""
MARKS = (("images", {"id", "file_name"}), ("images", {"id", "coco_url"}), ("annotations", {"image_id", "bbox"}))
"""Lists that COCO's files have, and keys of their entries."""
HOLD_OUT = 0.2


def search_annotations(root: StoragePath) -> dict[str, Any] | None:
    """Return the keys `annotations` and `images`, and `hold_out` where there is no split; None if no file is COCO's.

    Raises DataError if a file's images are not in the folder, or two files are of one split.
    """
    found = [file for file in _largest(root) if _is_coco(file)]
    if not found:
        return None
    images = collections.defaultdict(list)
    for image in images_under(root):
        images[image.name].append(image)
    files: dict[Split, StoragePath] = {}
    for file in found:
        split = _split(file, root, alone=len(found) == 1)
        other = files.setdefault(split, file)
        if other != file:
            raise DataError(
                f"{other} and {file} both hold annotations of split {split!r}: state in the recipe which to read, as "
                f"`annotations: {{{split}: {other.relative_to(root)}}}`, or give a folder that has one of them"
            )
    settings: dict[str, Any] = {
        "annotations": {split: file.relative_to(root) for split, file in files.items()},
        "images": {split: _folder(file, images, root) for split, file in files.items()},
    }
    return settings if set(files) - {"train"} else {**settings, "hold_out": HOLD_OUT}


def _largest(root: StoragePath) -> list[StoragePath]:
    files = [file for file in walk(root) if file.suffix == ".json"]
    return sorted(sorted(files, key=lambda file: -file.stamp()[0])[:MOST_FILES], key=lambda file: file.path)


def _is_coco(file: StoragePath) -> bool:
    """Return True if a JSON file begins as COCO's do: it may be too large to be read whole for nothing."""
    try:
        data = file.read(0, min(HEAD, file.stamp()[0]))
        head = from_json(data.decode(json.detect_encoding(data), "ignore"), allow_partial=True)
    except (DataError, ValueError):
        return False
    return isinstance(head, dict) and any(_has_keys(head.get(key), keys) for key, keys in MARKS)


def _has_keys(entries: object, keys: set[str]) -> bool:
    first = entries[0] if isinstance(entries, list) and entries else None
    return isinstance(first, dict) and keys <= set(first)


def _split(file: StoragePath, root: StoragePath, alone: bool) -> Split:
    """Return the split that a file's path names; one file without such a name is all there is."""
    stated = split_from_path(file.relative_to(root))
    if stated is None and not alone:
        raise DataError(f"{file}: is one of several files of COCO's, and its name tells no split: train, val or test")
    return "train" if alone else stated or "train"


def _folder(file: StoragePath, images: dict[str, list[StoragePath]], root: StoragePath) -> str:
    """Return the folder, relative to `root`, below which most of a file's images lie; of several, the nearest to it."""
    names = [image.name for image in read_annotations(file, "category").images if image.name][:SAMPLE]
    folders = collections.Counter(folder for name in names for folder in _folders_of(name, images))
    if not folders:
        first = f"; the first is {names[0]!r}" if names else ""
        raise DataError(f"{file}: of the images that it lists, none is in {root}{first}")
    own = file.parent.path.split("/")
    best = min(folders, key=lambda path: (-folders[path], -_shared(own, path.split("/")), len(path)))
    return StoragePath(root.fs, best).relative_to(root)


def _folders_of(name: str, images: dict[str, list[StoragePath]]) -> Iterable[str]:
    """Return the folders relative to which `name` is the path of an image."""
    parts = name.replace("\\", "/").removeprefix("./").split("/")
    found = (image.path.split("/") for image in images.get(parts[-1], ()))
    return ["/".join(path[: -len(parts)]) for path in found if path[-len(parts) :] == parts]


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(1 for a, b in zip(one, other, strict=False) if a == b)
