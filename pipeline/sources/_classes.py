"""Helpers for the class names and class ids that sources read."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import DataError
from pipeline.sources import TrueLabels
from pipeline.stores.labels import Value

Id = TypeVar("Id", int, int | str)
"""An id of a class in a file."""


def index_classes(names: Mapping[Id, str]) -> tuple[tuple[str, ...], dict[Id, int]]:
    """Return the distinct names in order of their first id, and the class index of every id; ids may have gaps.

    Ids that are text come after numbers.

    Example:
        index_classes({9: "car", 2: "sky", 5: "car"}) == (("sky", "car"), {9: 1, 2: 0, 5: 1})
    """
    ids = sorted(names, key=lambda each: (isinstance(each, str), each))
    classes = tuple(dict.fromkeys(names[class_id] for class_id in ids))
    index = {name: number for number, name in enumerate(classes)}
    return classes, {class_id: index[name] for class_id, name in names.items()}


def check_distinct(classes: Sequence[str]) -> None:
    """Raise DataError, naming both, if two classes are one, or differ only by case, accents' encoding or outer spaces.

    Also if one is no text.
    """
    seen: dict[str, str] = {}
    for name in classes:
        if not isinstance(name, str):
            raise DataError(f"the class {name!r} is no text: {', '.join(map(repr, classes[:10]))}")
        folded = unicodedata.normalize("NFC", name).casefold().strip()
        first = seen.get(folded)
        if first == name:
            raise DataError(f"the class {name!r} is given twice: {', '.join(classes)}; give each class once")
        if first is not None:
            raise DataError(
                f"the classes {first!r} and {name!r} differ only by case, accents or spaces: rename or join one"
            )
        seen[folded] = name


def class_index(label: object, classes: Sequence[str]) -> int:
    """Return the index of a label as files hold it: a class name, or an index from 0 as a number or as digits.

    Numbers are indices, whole floats too, as tables with missing values have them. Raises DataError for a
    label that is neither, or for digits that are the name of one class and the index of another.
    """
    number = _whole_number(label)
    if number is None or number >= len(classes):
        return class_named(label, classes)
    if isinstance(label, str) and label in classes and classes.index(label) != number:
        raise DataError(
            f"label {label!r} may be the class of this name, or that at index {number}, {classes[number]!r}: call the "
            "classes by words, or put them in an order in which both are the same"
        )
    return number


def class_named(label: object, classes: Sequence[str]) -> int:
    """Return the index of a class name. Raises DataError if there is no such class."""
    if label in classes:
        return classes.index(str(label))
    known = f"{', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
    raise DataError(f"label {label!r} is not among the {len(classes)} classes: {known}")


def _whole_number(label: object) -> int | None:
    """Return the number from 0 on that a label is or spells, None if it is none."""
    if isinstance(label, str):
        return int(label) if re.fullmatch(r"[0-9]{1,9}", label) else None
    if (
        isinstance(label, int | float)
        and not isinstance(label, bool)
        and math.isfinite(label)
        and label >= 0
        and label == int(label)
    ):
        return int(label)
    return None


def one_hot_label(index: int, count: int, size: tuple[int, int]) -> TrueLabels:
    """Return the classification label of an image of class `index` of `count`; its `size` plays no part."""
    probs = np.zeros(count, np.float32)
    probs[index] = 1
    return TrueLabels({"classification": {"probs": probs}})


def true_boxes(boxes: ArrayLike, classes: ArrayLike, size: tuple[int, ...]) -> Value:
    """Return the detection label of `boxes` (N, 4) in pixels and `classes` (N,), for an image of (width, height)."""
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.ones(len(corners), np.float32)
    return {
        "boxes": corners,
        "scores": scores,
        "classes": np.array(classes, np.int32),
        "size": np.array(size, np.int32),
    }


def select_boxes(boxes: Value, numbers: Sequence[int]) -> Value:
    """Return the detection label with these of its boxes alone."""
    chosen = np.array(numbers, dtype=np.intp)
    return {name: array if name == "size" else array[chosen] for name, array in boxes.items()}
