"""Tasks of Label Studio's JSON export: which image they are of, and what is marked and chosen in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.errors import DataError
from pipeline.sources._boxes import BoxShape, Corners, as_numbers, as_points, enclose, rotated, scaled
from pipeline.sources._files import IMAGE_SUFFIXES
from pipeline.sources._task_files import AnnotatedImage, Size

UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the names of files that are uploaded."""
LABELS, CHOICES = "labels", "choices"
KEYS = {
    "rectangle": ("x", "y", "width", "height"),
    "ellipse": ("x", "y", "radiusX", "radiusY"),
    "polygon": ("points",),
}
"""Shapes that hold an area, and the keys of their values."""


def read_task(task: Mapping[str, Any]) -> AnnotatedImage:
    """Return what a task says of its image; boxes are in percent. Raises DataError if it names none."""
    place, names = f"task {task.get('id')!r:.20}", tuple(_names(task))
    if not names:
        raise DataError(f"{place} names no image in `data`: {task.get('data')!r:.80}")
    given = task.get("annotations")
    made = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    finished = [each for each in made if not each.get("was_cancelled")]
    if not finished:
        return AnnotatedImage(place, names, None)
    used = max(finished, key=lambda each: (bool(each.get("ground_truth")), str(each.get("updated_at") or "")))
    notes = [f"one of {len(finished)} annotations is used"] if len(finished) > 1 else []
    result = used.get("result")
    items = [each for each in result if isinstance(each, dict)] if isinstance(result, list) else []
    reader = _Marks(items)
    return AnnotatedImage(
        place, names, tuple(reader.shapes()), reader.size(), None, (*notes, *reader.notes()), tuple(reader.choices())
    )


def _names(task: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the image of a task may be called: by its URL, and by the name of the file that was uploaded."""
    data = task.get("data")
    values = [data.get("image"), *data.values()] if isinstance(data, dict) else []
    for value in (*values, task.get("file_upload")):
        if isinstance(value, str) and (path := _path(value)).lower().endswith(IMAGE_SUFFIXES):
            yield path
            folders, slash, name = path.rpartition("/")
            if UPLOADED.match(name):
                yield folders + slash + UPLOADED.sub("", name)


def _path(url: str) -> str:
    """Return the path in a URL; of files on Label Studio's own machine it is the parameter `d`."""
    try:
        parts = urlsplit(url)
        stated = parse_qs(parts.query).get("d")
    except ValueError:
        return url
    if stated:
        return stated[0]
    return unquote(parts.path) if parts.scheme or parts.query else url


class _Marks:
    """The marks of one annotation."""

    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        self.items = items
        self._labels = {
            str(item.get("id")): _texts(_value(item).get(LABELS)) for item in items if item.get("type") == LABELS
        }
        self._regions = {str(item.get("id")) for item in items if _is_region(item)}

    def size(self) -> Size | None:
        """Return the (width, height) of the image that the marks state, None if they state none."""
        found = (as_numbers([item.get("original_width"), item.get("original_height")], 2) for item in self.items)
        sides = next(filter(None, found), None)
        return (int(sides[0]), int(sides[1])) if sides and all(sides) else None

    def shapes(self) -> Iterator[BoxShape]:
        """Yield the boxes in percent, one for each class of a region."""
        for number, item in enumerate(filter(_is_region, self.items), 1):
            kind, place = str(item.get("type")), f"region {number}"
            names: Sequence[str | None] = _texts(_value(item).get(kind)) or self._labels.get(str(item.get("id")), [])
            shape = kind.removesuffix(LABELS)
            for name in names or (None,):
                if shape not in KEYS:
                    yield BoxShape(place, name, None, f"{kind:.20}, which is no box, dropped")
                elif item.get("image_rotation"):
                    yield BoxShape(place, name, None, "box in an image that was turned dropped")
                else:
                    yield BoxShape(place, name, _corners(shape, _value(item), self.size()))

    def choices(self) -> Iterator[tuple[str, str]]:
        """Yield the control and the name of what is chosen for the whole image."""
        for item in self.items:
            if item.get("type") == CHOICES and str(item.get("id")) not in self._regions:
                for name in _texts(_value(item).get(CHOICES)):
                    yield str(item.get("from_name")), name

    def notes(self) -> list[str]:
        """Return what is left out, each kind once."""
        others = [item for item in self.items if not _is_region(item) and item.get("type") != LABELS]
        kinds = {
            "choices of regions" if item.get("type") == CHOICES else f"{item.get('type')!r:.20}"
            for item in others
            if item.get("type") != CHOICES or str(item.get("id")) in self._regions
        }
        return [f"{kind} left out" for kind in sorted(kinds)]


def _is_region(item: Mapping[str, Any]) -> bool:
    kind = item.get("type")
    return isinstance(kind, str) and kind != LABELS and (kind.endswith(LABELS) or kind in KEYS)


def _value(item: Mapping[str, Any]) -> Mapping[str, Any]:
    value = item.get("value")
    return value if isinstance(value, dict) else {}


def _texts(values: object) -> list[str]:
    given = values if isinstance(values, list) else []
    return [value.strip() for value in given if isinstance(value, str) and value.strip()]


def _corners(shape: str, value: Mapping[str, Any], size: Size | None) -> Corners | None:
    """Return the box around a shape in an image of (width, height); None if it is none, or turned in one of no size."""
    if shape == "polygon":
        points = as_points(value.get("points"))
        return enclose(points) if points and len(points) > 2 else None
    numbers = as_numbers([value.get(key) for key in KEYS[shape]], 4)
    angle = as_numbers([value.get("rotation") or 0], 1)
    if numbers is None or angle is None or (angle[0] and size is None):
        return None
    x, y, width, height = numbers
    box = (x, y, x + width, y + height) if shape == "rectangle" else (x - width, y - height, x + width, y + height)
    return _turned(box, angle[0], (x, y), size) if size and angle[0] else box


def _turned(box: Corners, degrees: float, center: tuple[float, float], size: Size) -> Corners:
    """Return the box around one that is turned in an image of (width, height), all in percent."""
    pixels = scaled(box, size)
    x, y = (number * side for number, side in zip(center, size, strict=True))
    return scaled(rotated(pixels, degrees, (x, y)), (1 / size[0], 1 / size[1]))
