"""Class names and numbers as sources read them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.errors import DataError
from pipeline.sources import TrueLabels


def number_classes(names: Mapping[int, str]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Sparse ids with their names -> the distinct names in order of their first id, and each id's place among them."""
    classes = tuple(dict.fromkeys(names[number] for number in sorted(names)))
    place = {name: index for index, name in enumerate(classes)}
    return classes, {number: place[name] for number, name in names.items()}


def check_distinct(classes: Sequence[str]) -> None:
    """Raise DataError, naming both, if two classes differ only by case or by how accents are encoded."""
    seen: dict[str, str] = {}
    for name in classes:
        first = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if first != name:
            raise DataError(f"the classes {first!r} and {name!r} differ only by case or accents: rename or join one")


def class_index(label: object, classes: Sequence[str]) -> int:
    """The place among `classes` of a label as files hold it: a name, or a number (in digits or not) from 0.

    Raises DataError if it is neither.
    """
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if isinstance(label, int | str) and re.fullmatch(r"\d+", str(label)) and int(label) < len(classes):
        return int(label)
    raise DataError(f"label {label!r} is not among the {len(classes)} classes: {', '.join(classes[:10])}, ...")


def class_truth(index: int, count: int, size: tuple[int, int]) -> TrueLabels:
    """The truth of an image of class `index` of `count`, whatever its size."""
    probs = np.zeros(count, np.float32)
    probs[index] = 1
    return TrueLabels({"classification": {"probs": probs}})
