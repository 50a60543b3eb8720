"""Boxes as formats state them, made into detection labels: checked, clipped to the image, and counted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from pipeline.sources import TrueLabels
from pipeline.sources._classes import class_named, true_boxes

Corners = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels."""
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class BoxShape:
    """An object that an annotation file marks in an image, as a box."""

    place: str
    """Which one it is: "annotation 7", "line 3"."""
    label: int | str | None
    """Its class: the index or the name. None if the file states none."""
    corners: Corners | None
    """None if the file does not state what makes a box."""
    reason: str | None = None
    """Why it is left out; None if it is used."""
    by_intent: bool = False
    """True if a format says that it is no example, as of a crowd: then it does not count as dropped."""


def box_labels(shapes: Sequence[BoxShape], classes: Sequence[str], size: tuple[int, int]) -> TrueLabels:
    """Return the detection label of an image of (width, height), with a note for every box that is not as stated.

    Raises DataError if the class of a box is none of `classes`.
    """
    return checked_boxes(shapes, classes, size)[0]


def checked_boxes(
    shapes: Sequence[BoxShape], classes: Sequence[str], size: tuple[int, int]
) -> tuple[TrueLabels, list[int]]:
    """Return what `box_labels` does, and the positions in `shapes` of the boxes that are in the label."""
    truth, boxes, indices, kept = TrueLabels(annotations=len(shapes)), [], [], []
    for number, shape in enumerate(shapes):
        box, note = (None, shape.reason) if shape.reason else _checked(shape, size)
        if note:
            truth.notes.append(f"{note}: {shape.place}")
        if box and shape.label is not None:
            boxes.append(box)
            kept.append(number)
            indices.append(shape.label if isinstance(shape.label, int) else class_named(shape.label, classes))
        elif not shape.by_intent:
            truth.dropped += 1
    truth.values["detection"] = true_boxes(boxes, indices, size)
    return truth, kept


def _checked(shape: BoxShape, size: tuple[int, int]) -> tuple[Corners | None, str | None]:
    """Return the box clipped to the image, None if it is dropped; and a note if it is changed."""
    if shape.label is None:
        return None, "box without a class dropped"
    if shape.corners is None or not all(map(math.isfinite, shape.corners)):
        return None, "box without four numbers dropped"
    x0, y0, x1, y1 = shape.corners
    if x1 <= x0 or y1 <= y0:
        return None, "empty box dropped"
    width, height = size
    box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if box[0] >= box[2] or box[1] >= box[3]:
        return None, "box outside the image dropped"
    return box, "box clipped to the image" if box != shape.corners else None


def enclose(points: Iterable[Point]) -> Corners | None:
    """Return the smallest box around points, None around none."""
    xs, ys = zip(*given, strict=True) if (given := list(points)) else ((), ())
    return (min(xs), min(ys), max(xs), max(ys)) if xs else None


def rotated(corners: Corners, degrees: float, center: Point) -> Corners:
    """Return the smallest box around a rectangle that is turned clockwise about a point; of no angle, itself."""
    if degrees % 360 == 0:
        return corners
    x0, y0, x1, y1 = corners
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    offsets = [(x - center[0], y - center[1]) for x in (x0, x1) for y in (y0, y1)]
    found = enclose((center[0] + x * cos - y * sin, center[1] + x * sin + y * cos) for x, y in offsets)
    return found or corners


def scaled(corners: Corners, scale: Point) -> Corners:
    """Return a box with its horizontal numbers times the first of `scale`, and its vertical ones times the second."""
    x0, y0, x1, y1 = corners
    return (x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1])


def as_numbers(values: object, count: int) -> list[float] | None:
    """Return `count` finite numbers of a list, which may be written as text; None if it is anything else."""
    try:
        numbers = [float(value) for value in values] if isinstance(values, list | tuple) else []
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def as_points(values: object) -> list[Point] | None:
    """Return the points of a list of pairs of numbers, None if it is anything else."""
    pairs = [as_numbers(value, 2) for value in values] if isinstance(values, list | tuple) else [None]
    return [(pair[0], pair[1]) for pair in pairs if pair] if all(pairs) else None
