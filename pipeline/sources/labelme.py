"""Labelme's JSON files, one per image, beside it or in a folder of its own: rectangles, polygons, circles and masks.

The box of a shape is the one around it, and of the shapes of one class in a group the one around all. Points and lines
are no boxes, and count as dropped. An image without a JSON file was not labelled. Splits are folders called like them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from pipeline.errors import DataError
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources._boxes import BoxShape, Corners, as_points, enclose
from pipeline.sources._files import check_size
from pipeline.sources._label_files import LabelFileSource, names_in_files
from pipeline.storage.json_text import decode_json
from pipeline.storage.path import StoragePath

AREAS = {"rectangle": 2, "polygon": 3, "mask": 2}
"""Shapes that the box around their points holds, and the least number of these."""
IGNORED = "__ignore__"
"""Labelme's class of what is to be left out."""
MOST_BYTES = 256 << 20
"""Labelme puts the image itself into the file."""
LOOKED_INTO = 100
"""Files that tell whether a folder is of this kind."""


class Config(SourceConfig):
    """A folder with images and Labelme's JSON files."""

    kind: Literal["labelme"] = "labelme"
    path: str
    """Folder or URL."""
    classes: tuple[str, ...] = ()
    """Names of the classes in order; by default all that occur, sorted, for which every plan reads all JSON files."""
    hold_out: Share = 0.2
    """Where no folder but train is called like a split: the share that becomes `test`, by the hash of the file's
    name."""


@dataclass
class _Marked:
    """A shape; what is wrong with one costs this one alone."""

    label: Any = None
    points: Any = None
    shape_type: Any = "polygon"
    group_id: Any = None


@dataclass
class _Labels:
    """What is read of a file: other keys are passed over, the image itself among them."""

    shapes: list[_Marked]
    imageWidth: Any = None
    imageHeight: Any = None


LABELS = TypeAdapter(_Labels)


class Source(LabelFileSource):
    """Reads the folder. Raises ConfigError if it does not exist; later DataError on class names that are alike."""

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(config.path, ".json", config.hold_out)

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        """Return the key `classes` for a folder with JSON files of shapes, so that no plan has to read all."""
        source = cls(Config(path=path))
        if not any(map(source.is_label, itertools.islice(source.label_files(), LOOKED_INTO))):
            return None
        return {"classes": list(names_in_files(source))}

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        return self.config.classes or names_in_files(self)

    def is_label(self, file: StoragePath) -> bool:
        try:
            return bool(_read(file).shapes)
        except DataError:
            return False

    def read_shapes(self, file: StoragePath, size: tuple[int, int] | None) -> list[BoxShape]:
        labels = _read(file)
        stated = (labels.imageWidth, labels.imageHeight)
        if size and all(isinstance(side, int) and side > 0 for side in stated):
            check_size(stated, size, "it says")
        return list(_boxes(labels.shapes))


def _read(file: StoragePath) -> _Labels:
    if file.stamp()[0] > MOST_BYTES:
        raise DataError(f"has more than {MOST_BYTES:,} bytes")
    try:
        return LABELS.validate_python(from_json(decode_json(file.read())))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"not Labelme's JSON: {place}: {first['msg']} (value {first['input']!r:.60})") from error
    except ValueError as error:
        raise DataError(f"not Labelme's JSON: {error}") from error


def _boxes(shapes: Sequence[_Marked]) -> Iterator[BoxShape]:
    """Yield a box for each shape, and one for all shapes of a class and a group, which are parts of one object."""
    groups: dict[tuple[str, str], list[BoxShape]] = {}
    for number, shape in enumerate(shapes, 1):
        box = _box(f"shape {number}", shape)
        if shape.group_id is None or box.corners is None or box.label is None:
            yield box
        else:
            groups.setdefault((repr(shape.group_id), str(box.label)), []).append(box)
    for parts in groups.values():
        corners = [part.corners for part in parts if part.corners]
        around = enclose(point for x0, y0, x1, y1 in corners for point in ((x0, y0), (x1, y1)))
        yield dataclasses.replace(parts[0], corners=around)


def _box(place: str, shape: _Marked) -> BoxShape:
    name = shape.label.strip() or None if isinstance(shape.label, str) else None
    kind = shape.shape_type or "polygon"
    if name == IGNORED:
        return BoxShape(place, None, None, f"shape of the class {IGNORED} left out", by_intent=True)
    if kind != "circle" and (not isinstance(kind, str) or kind not in AREAS):
        return BoxShape(place, name, None, f"{kind!r:.20}, which has no area, dropped")
    return BoxShape(place, name, _corners(kind, as_points(shape.points) or []))


def _corners(kind: str, points: list[tuple[float, float]]) -> Corners | None:
    if kind != "circle":
        return enclose(points) if len(points) >= AREAS[kind] else None
    if len(points) != 2:
        return None
    (x, y), edge = points
    radius = math.dist((x, y), edge)
    return (x - radius, y - radius, x + radius, y + radius)
