"""Masks of classes, pixel by pixel: ids, colours, or grey on two sides of a threshold.

Ids are the numbers of a one-channel image of 8 or 16 bits, or the indices of a palette, not its colours. Ids may have
gaps; classes are in order of their ids, and ids with the same name are one class. Classes of colours are in order of
these, read as numbers: black is the first.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from pipeline.data.decode import decode_colors, decode_gray, decode_numbers
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.base import BaseConfig
from pipeline.sources import TrueLabels
from pipeline.sources._classes import check_distinct, index_classes
from pipeline.sources._files import check_size
from pipeline.sources._rasters import RasterReader
from pipeline.storage.json_text import load_json
from pipeline.storage.path import StoragePath, require_exists
from pipeline.stores.labels import IGNORE, LabelSpace

UNLISTED = -1
MOST_SHOWN = 10
"""Ids and colours that a message lists."""


def _check_class_id(stated: Any) -> int:
    number = _id(stated) if isinstance(stated, int | str) and re.fullmatch(r"[0-9]{1,5}", str(stated)) else IGNORE
    if number >= IGNORE:
        raise ValueError(f"{stated!r} is no class id: 0 to {IGNORE - 1} would work")
    return number


def _check_color(stated: Any) -> Any:
    numbers = stated if isinstance(stated, list | tuple) else []
    is_color = len(numbers) == 3 and all(str(each).isdigit() and int(each) <= 255 for each in numbers)
    if not is_color and not (isinstance(stated, str) and re.fullmatch(r"#?[0-9A-Fa-f]{6}", stated)):
        raise ValueError(f"{stated!r} is no colour: '#804080' or [128, 64, 128] would work")
    return stated


ClassId = Annotated[int, BeforeValidator(_check_class_id), Field(ge=0, lt=IGNORE)]
PixelId = Annotated[int, Field(ge=0, le=IGNORE)]
Color = Annotated[tuple[int, int, int] | str, BeforeValidator(_check_color)]
"""Red, green and blue, as numbers from 0 to 255 or as `#804080`."""


class MaskKeys(BaseConfig):
    """The keys that say what the pixels of masks mean."""

    mask_suffix: str | None = None
    """End of the masks' stems that is not part of the images': `_mask` of `x_mask.png`."""
    classes: str | dict[ClassId, str] | tuple[str, ...] = "classes.json"
    """Names by id, names in order of ids from 0, or a JSON file with either, which may be under the key `classes`
    beside an `ignore_index`."""
    colors: dict[str, Color] = Field(default_factory=dict)
    """For masks in colours, instead of `classes`: the colour of each class by name, as `[128, 64, 128]` or
    `"#804080"`."""
    threshold: Annotated[int, Field(ge=1, le=IGNORE)] | None = None
    """For grey masks, also in JPEG: the least brightness of the second of the two `classes`; the first is darker."""
    ignore: tuple[PixelId | Color, ...] = ()
    """Ids, or with `colors` colours, of pixels without a label, besides the `ignore_index` in the file of classes."""

    @model_validator(mode="after")
    def _one_way_to_read(self) -> MaskKeys:
        if self.colors and self.classes != MaskKeys.model_fields["classes"].default:
            raise ValueError("colors states the classes already; leave `classes` out, or `colors` if masks hold ids")
        if self.threshold is not None and (self.colors or self.ignore):
            raise ValueError("threshold: a pixel is of one of two classes, so that `colors` and `ignore` mean nothing")
        for item in self.ignore:
            if isinstance(item, int) == bool(self.colors):
                known = "a colour as [0, 0, 0]" if self.colors else "an id"
                raise ValueError(f"ignore: {item!r} is not {known}, by which masks are read here")
        return self


class MaskReader(RasterReader):
    """Reads masks. Raises ConfigError if the classes can't be read."""

    noun = "mask"

    def __init__(self, keys: MaskKeys, root: StoragePath) -> None:
        self.keys = keys
        listed = keys.classes
        in_file = isinstance(listed, str) and not keys.colors
        self.files = [require_exists(root / str(listed), "classes", "file")] if in_file else []
        names, void = _read_classes(self.files[0]) if self.files else (self._stated_names(), [])
        ignored = sorted({*map(_pixel, keys.ignore), *void})
        self._classes, indices = index_classes({i: name for i, name in names.items() if i not in ignored})
        if not self._classes:
            raise ConfigError(f"classes: none of {len(names)} is left, because ids {ignored} are ignored")
        if keys.threshold is not None and sorted(names) != [0, 1]:
            raise ConfigError(f"threshold: needs two `classes`, as [background, cell], and there are {len(names)}")
        check_distinct(self._classes)
        self._pixels = np.array(sorted([*indices, *ignored]))
        self._indices = np.array([indices.get(pixel, IGNORE) for pixel in self._pixels.tolist()], np.uint16)

    def spaces(self) -> dict[str, LabelSpace]:
        return {"segmentation": LabelSpace("segmentation", self._classes)}

    def read(self, file: StoragePath, name: str, size: tuple[int, int]) -> TrueLabels:
        pixels = self._decode(file.read())
        check_size((pixels.shape[1], pixels.shape[0]), size, "it is")
        classes = self._index(pixels)
        return TrueLabels({"segmentation": {"classes": classes, "confidence": np.ones(classes.shape, np.float32)}})

    def _stated_names(self) -> dict[int, str]:
        """Return the names that the recipe states, by id or by colour."""
        if not self.keys.colors:
            return _by_id(self.keys.classes)
        names: dict[int, str] = {}
        for name, color in self.keys.colors.items():
            other = names.setdefault(_pixel(color), name)
            if other != name:
                raise ConfigError(f"colors: {other!r} and {name!r} have the same colour, {_shown(_pixel(color))}")
        return names

    def _decode(self, data: bytes) -> NDArray[Any]:
        """Return what the pixels (H, W) hold: ids, or colours as numbers."""
        if self.keys.threshold is not None:
            return (decode_gray(data) >= self.keys.threshold).astype(np.int32)
        if self.keys.colors:
            return pack_colors(decode_colors(data))
        ids = decode_numbers(data)
        if ids.dtype.kind == "f" or ids.min() < 0 or ids.max() > IGNORE:
            raise DataError(f"it holds {ids.dtype} from {ids.min()} to {ids.max()}, not ids from 0 to {IGNORE}")
        return ids

    def _index(self, pixels: NDArray[Any]) -> NDArray[np.uint16]:
        """Return the class indices (H, W) of ids or colours."""
        places = np.searchsorted(self._pixels, pixels).clip(max=len(self._pixels) - 1)
        if (unlisted := self._pixels[places] != pixels).any():
            found = np.unique(pixels[unlisted])[:MOST_SHOWN].tolist()
            if self.keys.colors:
                listing = ", ".join(map(_shown, found))
                raise DataError(f"colour {listing} is not among the classes; list it in `colors` or in `ignore`")
            listing = ", ".join(map(str, found))
            raise DataError(f"class id {listing} is not among the classes; list it in `classes` or in `ignore`")
        return self._indices[places]


def pack_colors(colors: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return colours (..., 3) as numbers: 0x804080 for (128, 64, 128)."""
    wide = colors.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def unpack_color(number: int) -> list[int]:
    """Return red, green and blue of a number of `pack_colors`."""
    return [number >> 16, number >> 8 & 255, number & 255]


def _shown(number: int) -> str:
    return str(unpack_color(number))


def _pixel(stated: int | Color) -> int:
    """Return the id that a recipe states, or the number of its colour."""
    if isinstance(stated, int):
        return stated
    if isinstance(stated, str):
        return int(re.sub("^#", "", stated), 16)
    return int(pack_colors(np.array(stated, np.uint8)))


def _read_classes(file: StoragePath) -> tuple[dict[int, str], list[int]]:
    """Return the names by id and the ids to ignore that a JSON file states. Raises ConfigError on other content."""
    try:
        content = load_json(file.read())
        nested = isinstance(content, dict) and "classes" in content
        names = _by_id(content["classes"] if nested else content)
        ignored = content.get("ignore_index", []) if nested else []
        return names, [_id(number) for number in (ignored if isinstance(ignored, list) else [ignored])]
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f'classes: {file} is not JSON like ["sky"] or {{"0": "sky"}} ({error})') from error


def _by_id(names: Any) -> dict[int, str]:
    pairs = list(enumerate(names) if isinstance(names, list | tuple) else names.items())
    by_id: dict[int, str] = {}
    for number, name in pairs:
        if not isinstance(name, str):
            raise TypeError(f"the class {name!r} of id {number} is no text")
        if _id(number) in by_id:
            raise ValueError(f"id {number} has two classes, {by_id[_id(number)]!r} and {name!r}")
        by_id[_id(number)] = name
    return by_id


def _id(number: Any) -> int:
    """Return an id, given as a whole number or in digits, as keys of JSON are."""
    digits = isinstance(number, str) and number.isascii() and number.isdigit()
    if (digits or type(number) is int) and 0 <= int(number) <= IGNORE:
        return int(number)
    raise ValueError(f"id {number!r} is no whole number from 0 to {IGNORE}")
