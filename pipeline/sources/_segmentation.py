"""The `segmentation` of COCO's annotations: polygons, or run lengths as a list or as compressed text."""

from __future__ import annotations

import contextlib
import math
import reprlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco

from pipeline.errors import DataError
from pipeline.sources._boxes import as_numbers
from pipeline.stores.rle import Size, check_runs, decode_mask, encode_mask, from_runs

FARTHEST = 2
"""How far from an image, in its sides, a polygon may reach."""
LONGEST = 4
"""Longest outline of a polygon, in pixels of the image: filling one takes time and memory for its length."""
MISSING = "annotation without a segmentation dropped"


def compact(value: object) -> object:
    """Return lists of numbers as arrays, which take a quarter of the memory; anything else as it is."""
    if isinstance(value, dict):
        return {key: compact(entry) if key == "counts" else entry for key, entry in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(entry, list) for entry in value):
            return [compact(entry) for entry in value]
        if all(type(entry) in (int, float) for entry in value):
            with contextlib.suppress(OverflowError):  # a whole number beyond all numbers, which is refused later
                return array("d", value)
    return value


def read_mask(value: object, size: Size, box: Sequence[float] | None = None) -> bytes:
    """Return the run lengths of a segmentation, in an image of `size` = (width, height) pixels.

    Raises DataError, "reason: value" or "reason", for what is dropped: no segmentation, damaged, without a pixel, or
    without one in the object's `box` (x0, y0, x1, y1), which lies in the image.
    """
    if value is None or (isinstance(value, list | array) and not len(value)):
        raise DataError(MISSING)
    mask = _read_runs(value, size) if isinstance(value, dict) else _read_polygons(value, size)
    pixels = decode_mask(mask, size)
    if not pixels.any():
        raise DataError("mask without a pixel dropped")
    x0, y0, x1, y1 = box or (0, 0, *size)
    if not pixels[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)].any():
        raise DataError("mask outside of its box dropped")
    return mask


def _read_runs(value: dict[str, Any], size: Size) -> bytes:
    """Return compressed or listed run lengths in their one canonical form."""
    stated, counts = as_numbers(as_list(value.get("size")), 2), value.get("counts")
    if stated != [size[1], size[0]]:
        raise DataError(f"mask of another size than the image dropped: {_quoted(value.get('size'))} (height, width)")
    try:
        if isinstance(counts, str):
            if not counts.isascii():
                raise ValueError(f"{counts[:20]!r} is no compressed run-length encoding")
            return encode_mask(decode_mask(counts.encode("ascii"), size))
        numbers = as_numbers(as_list(counts), len(counts)) if isinstance(counts, list | array) else None
        if numbers is None or any(not number.is_integer() for number in numbers):
            raise DataError(f"mask with counts that are no whole numbers dropped: {_quoted(counts)}")
        _check_counts(numbers, size)
        runs = np.array(numbers).astype(np.int64)
        check_runs(runs, size)
        return encode_mask(decode_mask(from_runs(runs, size), size))
    except ValueError as error:
        raise DataError(f"mask whose run lengths do not fit the image dropped: {error}") from error


def _read_polygons(value: object, size: Size) -> bytes:
    """Return the union of polygons, each a list x, y, x, y, ... in pixels, as COCO's tools fill them."""
    polygons = [value] if isinstance(value, array) else value
    if not isinstance(polygons, list):
        raise DataError(f"segmentation that is neither polygons nor run lengths dropped: {_quoted(value)}")
    checked = [_check_polygon(polygon, size) for polygon in polygons]
    return bytes(coco.merge(coco.frPyObjects(checked, size[1], size[0]))["counts"])


def _check_polygon(polygon: object, size: Size) -> list[float]:
    """Return the coordinates of a polygon. Raises DataError unless they are of three points or more near the image."""
    listed = as_list(polygon)
    numbers = as_numbers(listed, len(listed)) if isinstance(listed, list) else None
    if numbers is None:
        raise DataError(f"polygon that is no list of numbers dropped: {_quoted(polygon)}")
    if len(numbers) % 2:
        raise DataError("polygon with an odd number of coordinates dropped")
    if len(numbers) < 6:
        raise DataError("polygon of fewer than three points dropped")
    points = np.array(numbers).reshape(-1, 2)
    if (points < -FARTHEST * np.array(size)).any() or (points > (1 + FARTHEST) * np.array(size)).any():
        raise DataError("polygon far outside of the image dropped")
    length = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
    if length > LONGEST * size[0] * size[1]:
        raise DataError(f"polygon with an outline of {length:,.0f} pixels dropped")
    return numbers


def _check_counts(numbers: Sequence[float], size: Size) -> None:
    """Raise ValueError, with the number as it is written, for a run that fits no image of `size`."""
    wrong = next((number for number in numbers if not 0 <= number <= size[0] * size[1]), None)
    if wrong is not None:
        raise ValueError(f"a run of {wrong:.17g} pixels in an image of {size[0]} x {size[1]}")


def _quoted(value: object) -> str:
    """Return the beginning of a value as JSON's numbers, lists and texts are written."""
    return f"{reprlib.repr(as_list(value)):.40}"


def as_list(value: object) -> object:
    """Return what `compact` made an array as a list again."""
    return value.tolist() if isinstance(value, array) else value
