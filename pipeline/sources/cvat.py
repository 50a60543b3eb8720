"""CVAT's own XML, "CVAT for images 1.1": boxes, and polygons, ellipses and masks as the box around them.

Classes are those that the file lists, in its order. An image without shapes has no objects in it. A subset that is
called like a split is one; points and lines are no boxes, and count as dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal
from xml.etree.ElementTree import Element

from pipeline.errors import DataError
from pipeline.sources._boxes import BoxShape, Corners, as_numbers, as_points, enclose, rotated
from pipeline.sources._splits import parse_split
from pipeline.sources._task_files import AnnotatedImage, Size, TaskFileConfig, TaskFileSource
from pipeline.sources._xml import MEBIBYTE, read_xml
from pipeline.storage.path import StoragePath

ROOT = "annotations"
HEAD = 2048
"""Bytes of a file that hold its outermost element's name."""
MOST_BYTES = 256 * MEBIBYTE
TAG = "tag"
"""An element that says something of the whole image."""


class Config(TaskFileConfig):
    """A folder with images and CVAT's XML files."""

    kind: Literal["cvat"] = "cvat"


class Source(TaskFileSource):
    """Reads the files. Raises ConfigError if a path does not exist; later DataError on XML that is not CVAT's."""

    suffix = ".xml"

    @classmethod
    def is_own(cls, file: StoragePath) -> bool:
        try:
            head = file.read(0, min(HEAD, file.stamp()[0]))
        except DataError:
            return False
        return b"<annotations" in head and b"<version" in head

    def read_file(self, file: StoragePath) -> tuple[Sequence[str], Sequence[AnnotatedImage]]:
        content = read_xml(file, ROOT, MOST_BYTES)
        if content.find("track") is not None:
            raise DataError("is CVAT for video: export the task as CVAT for images 1.1, with the images")
        labels = [(element.text or "").strip() for element in content.iterfind("meta//label/name")]
        return list(dict.fromkeys(filter(None, labels))), list(map(_image, content.iterfind("image")))


def _image(element: Element) -> AnnotatedImage:
    place = f"image {element.get('id')!r:.20}"
    name = element.get("name")
    if not name:
        raise DataError(f"{place} has no name")
    sides = as_numbers([element.get("width"), element.get("height")], 2)
    size: Size | None = (int(sides[0]), int(sides[1])) if sides and all(sides) else None
    names = (name, f"{element.get('subset')}/{name}") if element.get("subset") else (name,)
    split = parse_split(element.get("subset") or "")
    notes = ("tags of the image left out",) if element.find(TAG) is not None else ()
    return AnnotatedImage(place, tuple(reversed(names)), tuple(_shapes(element)), size, split, notes)


def _shapes(image: Element) -> Iterator[BoxShape]:
    for number, element in enumerate((each for each in image if each.tag != TAG), 1):
        place, label = f"shape {number}", (element.get("label") or "").strip() or None
        if element.tag not in CORNERS:
            yield BoxShape(place, label, None, f"{element.tag:.20}, which is no box, dropped")
        else:
            yield BoxShape(place, label, _turned(element, CORNERS[element.tag](element)))


def _turned(element: Element, corners: Corners | None) -> Corners | None:
    """Return the box around a shape that is turned about its middle."""
    angle = as_numbers([element.get("rotation", "0")], 1)
    if corners is None or angle is None:
        return None
    x0, y0, x1, y1 = corners
    return rotated(corners, angle[0], ((x0 + x1) / 2, (y0 + y1) / 2))


def _attributes(element: Element, *names: str) -> list[float] | None:
    return as_numbers([element.get(name) for name in names], len(names))


def _box(element: Element) -> Corners | None:
    edges = _attributes(element, "xtl", "ytl", "xbr", "ybr")
    return (edges[0], edges[1], edges[2], edges[3]) if edges else None


def _polygon(element: Element) -> Corners | None:
    points = as_points([pair.split(",") for pair in element.get("points", "").split(";")])
    return enclose(points) if points and len(points) > 2 else None


def _ellipse(element: Element) -> Corners | None:
    numbers = _attributes(element, "cx", "cy", "rx", "ry")
    if numbers is None:
        return None
    x, y, across, down = numbers
    return (x - across, y - down, x + across, y + down)


def _mask(element: Element) -> Corners | None:
    numbers = _attributes(element, "left", "top", "width", "height")
    if numbers is None:
        return None
    left, top, width, height = numbers
    return (left, top, left + width, top + height)


CORNERS = {"box": _box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask}
