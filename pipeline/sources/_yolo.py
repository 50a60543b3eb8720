"""Files that go with YOLO's labels: the names of the classes, and the splits that `data.yaml` states."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Container, Iterator, Mapping
from typing import Any

from pipeline.errors import ConfigError, DataError
from pipeline.recipe.yaml_text import parse_yaml
from pipeline.sources._splits import SPLITS, Split, names_of_split
from pipeline.storage.path import StoragePath, walk

NAME_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
"""Files with a class name per line, of LabelImg, Label Studio, Darknet and Roboflow."""
USUAL, YAML = "data.yaml", (".yaml", ".yml")
MOST_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class YoloFiles:
    """What the files beside the labels state."""

    names: Mapping[int, str]
    """Class names by number."""
    splits: Mapping[Split, tuple[str, ...]]
    """Folders, or lists of images, by split, relative to the set; none if no file states any."""
    keypoints: bool
    """True if points follow the four numbers of a box."""


def find_description(root: StoragePath) -> StoragePath | None:
    """Return the file that names the classes: YAML with the key `names`, or else a list; None if there is none."""
    files = sorted(walk(root), key=lambda file: (file.path.count("/"), file.path))
    described = (file for file in files if file.name == USUAL or (file.suffix in YAML and "names" in _mapping(file)))
    return next(described, None) or next((file for file in files if file.name in NAME_LISTS), None)


def _mapping(file: StoragePath) -> dict[Any, Any]:
    try:
        content = _read_yaml(file)
    except (ConfigError, DataError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_yaml(file: StoragePath) -> Any:
    return parse_yaml(_text(file), str(file))


def _text(file: StoragePath) -> str:
    if file.stamp()[0] > MOST_BYTES:
        raise DataError(f"{file}: is too large to be a list of classes")
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no text in UTF-8 ({error})") from error


def read_description(file: StoragePath, root: StoragePath) -> YoloFiles:
    """Read the file that names the classes. Raises ConfigError, naming key and value, for what has no meaning."""
    if file.suffix not in YAML:
        lines = [line.strip() for line in _text(file).splitlines()]
        return YoloFiles({number: name for number, name in enumerate(lines) if name}, {}, keypoints=False)
    content = _read_yaml(file)
    if not isinstance(content, dict) or "names" not in content:
        raise ConfigError(f"{file}: has no key `names`, a list of the classes or a mapping from their numbers")
    names = _names(content["names"], file)
    if content.get("nc") not in (None, len(names)):
        raise ConfigError(f"{file}: `names` has {len(names)} classes, but `nc` is {content['nc']!r}")
    splits = dict(_splits(content, file, root))
    return YoloFiles(names, splits, keypoints=content.get("kpt_shape") is not None)


def _names(stated: object, file: StoragePath) -> dict[int, str]:
    pairs = stated.items() if isinstance(stated, dict) else enumerate(stated) if isinstance(stated, list) else ()
    names: dict[int, str] = {}
    for number, name in pairs:
        digits = isinstance(number, str) and number.isascii() and number.isdigit()
        if not digits and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
            raise ConfigError(f"{file}: names: {number!r:.60} is not the number of a class")
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise ConfigError(f"{file}: names: {name!r:.60} is no text: put quotes around the name of class {number}")
        names[int(number)] = str(name)
    if not names:
        raise ConfigError(f"{file}: names: {stated!r:.60} is not a list of classes or a mapping from their numbers")
    return names


def _splits(
    content: Mapping[Any, Any], file: StoragePath, root: StoragePath
) -> Iterator[tuple[Split, tuple[str, ...]]]:
    """Yield the folders and lists of each split that are there, relative to the set. A folder belongs to one split."""
    taken: set[str] = set()
    for split in SPLITS:
        stated = next((content[key] for key in names_of_split(split) if content.get(key)), None)
        given = stated if isinstance(stated, list) else [] if stated is None else [stated]
        found = [_inside(entry, content.get("path"), file, root) for entry in given]
        if stated is not None and not any(found):
            where = f"{file}: {split}: {stated!r:.100}"
            if split != "test":  # Roboflow's files name a folder of test images that may not be there
                raise ConfigError(f"{where} leads to no folder or list of images in {root}")
        new = tuple(dict.fromkeys(path for path in found if path is not None and path not in taken))
        taken.update(new)
        if new:
            yield split, new


def _inside(entry: object, base: object, file: StoragePath, root: StoragePath) -> str | None:
    """Return the path in the set that an entry of a split leads to, None if there is none.

    It is relative to the key `path`, which is relative to the YAML; but sets move, so that its end is looked for too.
    """
    parts = _parts(entry)
    names = [*_parts(base), *parts]
    own = file.parent.relative_to(root)
    folder = [] if own == "." else own.split("/")
    tried = [[*folder, *names], [*folder, *parts], parts, *(parts[start:] for start in range(1, len(parts)))]
    for each in tried:
        # `child` takes every sign as it is: what looks like a URL leads nowhere else
        if each and functools.reduce(StoragePath.child, each, root).exists():
            return "/".join(each)
    return None


def listed_images(file: StoragePath, images: Container[str]) -> Iterator[str]:
    """Yield those of `images`, paths in the set, that a list names: one a line, with any folders in front."""
    for line in _text(file).splitlines():
        parts = _parts(line.strip())
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        yield from (end for end in itertools.islice((end for end in ends if end in images), 1))


def _parts(path: object) -> list[str]:
    """Return the names in a path, without those that lead out of a folder."""
    text = path.replace("\\", "/") if isinstance(path, str) and "\0" not in path else ""
    return [part for part in text.split("/") if part not in ("", ".", "..")]
