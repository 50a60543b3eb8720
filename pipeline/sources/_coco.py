"""Schema of COCO's JSON files (https://cocodataset.org/#format-data): what is read of them, typed.

Numbers may be written as text, as some tools do: "7" is the id 7, "0" is no crowd. A category or image that can't be
told from others makes the file useless; of an image or annotation that lacks something else, that one is lost.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.errors import DataError
from pipeline.sources import TrueLabels
from pipeline.sources._segmentation import compact
from pipeline.storage.json_text import decode_json
from pipeline.storage.path import StoragePath

A = TypeVar("A", bound="Annotation")
T = TypeVar("T")
CANONICAL = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""Text that is a number and nothing else: "07" is a name."""
CROWD: dict[str | None, bool] = {
    **dict.fromkeys((None, "", "0", "false", "f", "no", "n"), False),
    **dict.fromkeys(("1", "true", "t", "yes", "y"), True),
}
"""Meanings of `iscrowd`, in small letters."""


def as_id(value: object) -> int | str | None:
    """Return a whole number for a number or the digits of one, other text as it is, None for what is no id."""
    if isinstance(value, str):
        return int(value) if CANONICAL.fullmatch(value) else value
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return None
    return int(value)


def _pixels(value: object) -> int | None:
    """Return a number of pixels in any writing, 0 if it is not stated, None for what is no whole number."""
    if value is None or value == "":
        return 0
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None


def _require_id(value: object) -> int | str:
    found = as_id(value)
    if found is None:
        raise ValueError("an id is a whole number or a text")
    return found


Id = Annotated[int | str, BeforeValidator(_require_id)]
MaybeId = Annotated[int | str | None, BeforeValidator(as_id)]
LAX = ConfigDict(coerce_numbers_to_str=True)


@dataclass(slots=True, config=LAX)
class Category:
    """A class."""

    id: Id
    name: Any = None
    supercategory: Any = None
    keypoints: Any = None
    skeleton: Any = None


@dataclass(slots=True, config=LAX)
class Image:
    """An image; its size is what the file says of it."""

    id: Id
    file_name: str | None = None
    coco_url: str | None = None
    width: Any = None
    height: Any = None

    @property
    def name(self) -> str | None:
        """The path below the folder of images: LVIS states a URL alone, whose path it is."""
        if self.file_name or not self.coco_url:
            return self.file_name
        try:
            return unquote(urlsplit(self.coco_url).path).lstrip("/")
        except ValueError:  # no URL
            return None

    def size(self) -> tuple[int, int] | None:
        """Return (width, height) in pixels; None if it is not stated. Raises DataError for what is no number."""
        width, height = _pixels(self.width), _pixels(self.height)
        if width is None or height is None:
            raise DataError(f"the annotations say {self.width!r} x {self.height!r} pixels, which are not two numbers")
        return (width, height) if width and height else None


@dataclass(slots=True, config=LAX)
class Annotation:
    """A box, [x, y, width, height] in pixels. What is wrong with one costs this box alone."""

    image_id: MaybeId = None
    category_id: MaybeId = None
    id: Any = None
    bbox: Any = None
    iscrowd: Any = None

    def crowd(self) -> bool | None:
        """Return True if it is a crowd, None if that can't be told."""
        flag = self.iscrowd
        text = str(int(flag)) if isinstance(flag, bool | float) and flag in (0, 1) else flag
        return CROWD.get(text if text is None else str(text).strip().lower())


@dataclass(slots=True, config=LAX)
class KeypointAnnotation(Annotation):
    """A box with the keypoints and the area of its object: see `pipeline.sources._keypoints`."""

    keypoints: Annotated[Any, BeforeValidator(compact)] = None
    area: Any = None


@dataclass(slots=True, config=LAX)
class SegmentedAnnotation(KeypointAnnotation):
    """A box with the pixels of its object as well: see `pipeline.sources._segmentation`."""

    segmentation: Annotated[Any, BeforeValidator(compact)] = None


@dataclass(config=LAX)
class _Content(Generic[A]):
    images: list[Image]
    categories: list[Category]
    annotations: list[A] = dataclasses.field(default_factory=list)


CONTENTS: dict[type[Annotation], TypeAdapter[Any]] = {
    Annotation: TypeAdapter(_Content[Annotation]),
    KeypointAnnotation: TypeAdapter(_Content[KeypointAnnotation]),
    SegmentedAnnotation: TypeAdapter(_Content[SegmentedAnnotation]),
}


@dataclasses.dataclass(frozen=True)
class SplitAnnotations:
    """The content of one split's JSON file."""

    categories: Mapping[int | str, str]
    """Class name by category id."""
    stated: Sequence[Category]
    """The categories as the file has them."""
    images: list[Image]
    """Sorted by file name."""
    annotations: Mapping[int | str | None, Sequence[Annotation]]
    """By image id; under None those that name no image."""


def read_annotations(
    file: StoragePath, classes: Literal["category", "supercategory"], kind: type[Annotation] = Annotation
) -> SplitAnnotations:
    """Read a JSON file, whose classes are its categories or their supercategories.

    Of annotations only what their `kind` has is kept: pixels take several times the memory of the boxes.

    Raises DataError if it is not COCO's format.
    """
    data = file.read()
    try:
        content = CONTENTS[kind].validate_json(decode_json(data))
        categories = _class_names(content.categories, classes)
        if len({image.id for image in content.images}) < len(content.images):
            raise DataError("two images have the same id")
    except ValidationError as error:
        raise DataError(f"{file}: not COCO annotations: {_explain(error)}") from error
    except (UnicodeDecodeError, DataError) as error:
        raise DataError(f"{file}: not COCO annotations: {error}") from error
    annotations = defaultdict(list)
    for annotation in content.annotations:
        annotations[annotation.image_id].append(annotation)
    images = sorted(content.images, key=lambda image: (image.name or "", str(image.id)))
    return SplitAnnotations(categories, content.categories, images, dict(annotations))


def read_objects(truth: TrueLabels, annotations: Sequence[A], read: Callable[[A], T]) -> list[T | None]:
    """Return what `read` makes of each annotation, None where it raises DataError.

    Such an annotation is noted in `truth` with the error's text, "reason: value" or "reason", and counts as dropped.
    """
    found: list[T | None] = []
    for annotation in annotations:
        try:
            found.append(read(annotation))
        except DataError as error:
            found.append(None)
            reason, _, value = str(error).partition(": ")
            truth.notes.append(f"{reason}: annotation {annotation.id}{f', {value}' if value else ''}")
            truth.dropped += 1
    return found


def _class_names(categories: Sequence[Category], classes: Literal["category", "supercategory"]) -> dict[int | str, str]:
    """Return the class name by category id. Raises DataError for one without a name, or for two of one id."""
    names: dict[int | str, str] = {}
    for category in categories:
        name = category.name if classes == "category" else category.supercategory
        if name is None or name == "":
            raise DataError(f"the {classes} {category.id!r} has no name")
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise DataError(f"the {classes} {category.id!r} has the name {name!r:.60}, which is no text")
        if names.setdefault(category.id, str(name)) != str(name):
            raise DataError(f"the id {category.id!r} is of {names[category.id]!r} and of {str(name)!r}")
    return names


def _explain(error: ValidationError) -> str:
    """Return where the first mistake is, and which."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    value = f" (value {first['input']!r:.60})" if first["type"] not in ("missing", "json_invalid") else ""
    return f"{place}: {first['msg']}{value}" if place else f"{first['msg']}{value}"
