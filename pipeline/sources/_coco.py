"""Schema of COCO's JSON files (https://cocodataset.org/#format-data): what is read of them, typed.

Numbers may be written as text, as some tools do: "7" is the id 7, "0" is no crowd. What is neither is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.errors import DataError
from pipeline.storage.path import StoragePath

CANONICAL = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""Text that is a number and nothing else: "07" is a name."""


def _as_id(value: object) -> object:
    """Return a whole number for a number in any writing, other text as it is."""
    if isinstance(value, str) and CANONICAL.fullmatch(value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("an id is a whole number or a text")
    return value


Id = Annotated[int | str, BeforeValidator(_as_id)]
LAX = ConfigDict(coerce_numbers_to_str=True)


@dataclass(slots=True, config=LAX)
class Category:
    """A class."""

    id: Id
    name: str | None = None
    supercategory: str | None = None


@dataclass(slots=True, config=LAX)
class Image:
    """An image; its size in pixels."""

    id: Id
    file_name: str
    width: int | None = None
    height: int | None = None


@dataclass(slots=True, config=LAX)
class Annotation:
    """A box, [x, y, width, height] in pixels; anything else in `bbox` costs this box alone."""

    image_id: Id
    category_id: Id
    id: Any = None
    bbox: Any = None
    iscrowd: bool | None = None


@dataclass(config=LAX)
class _Content:
    images: list[Image]
    categories: list[Category]
    annotations: list[Annotation] = dataclasses.field(default_factory=list)


CONTENT = TypeAdapter(_Content)


@dataclasses.dataclass(frozen=True)
class SplitAnnotations:
    """The content of one split's JSON file."""

    categories: Mapping[int | str, str]
    """Class name by category id."""
    images: list[Image]
    """Sorted by file name."""
    annotations: Mapping[int | str, list[Annotation]]
    """By image id."""


def read_annotations(file: StoragePath, classes: Literal["category", "supercategory"]) -> SplitAnnotations:
    """Read a JSON file, whose classes are its categories or their supercategories.

    Raises DataError if it is not COCO's format.
    """
    try:
        content = CONTENT.validate_json(file.read())
    except ValidationError as error:
        raise DataError(f"{file}: not COCO annotations: {_explain(error)}") from error
    names = {each.id: each.name if classes == "category" else each.supercategory for each in content.categories}
    if unnamed := [class_id for class_id, name in names.items() if name is None]:
        raise DataError(f"{file}: not COCO annotations: the {classes} {unnamed[0]!r} has no name")
    if len({image.id for image in content.images}) < len(content.images):
        raise DataError(f"{file}: not COCO annotations: two images have the same id")
    annotations = defaultdict(list)
    for annotation in content.annotations:
        annotations[annotation.image_id].append(annotation)
    images = sorted(content.images, key=lambda image: (image.file_name, str(image.id)))
    return SplitAnnotations({key: str(name) for key, name in names.items()}, images, dict(annotations))


def _explain(error: ValidationError) -> str:
    """Return where the first mistake is, and which."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    value = f" (value {first['input']!r:.60})" if first["type"] not in ("missing", "json_invalid") else ""
    return f"{place}: {first['msg']}{value}" if place else f"{first['msg']}{value}"
