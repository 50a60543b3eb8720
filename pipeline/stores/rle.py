"""Masks of objects as run lengths in COCO's compressed form: without loss, and readable by COCO's tools.

The text of a mask counts pixels down the columns, the first column first: how many are outside of the object, then how
many are in it, and so on. `size` is (width, height) in pixels, as everywhere. Masks of a label are an array (N,) of
objects of the type `bytes`: in NumPy's own `bytes_` each would take as much memory as the longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco
from numpy.typing import NDArray

from pipeline.stores.labels import Value
from pipeline.stores.rasters import FULL_IMAGE, Box, resample_nearest

Size = tuple[int, int]
MAX_CHARACTERS = 8
"""Of a number in the text, 5 bits each: enough for any image."""


def rle_array(masks: Iterable[bytes]) -> NDArray[np.object_]:
    """Return the texts of N masks as an array (N,)."""
    return np.array([bytes(mask) for mask in masks], dtype=np.object_)


def encode_mask(mask: NDArray[np.bool_], at: tuple[int, int] = (0, 0), size: Size | None = None) -> bytes:
    """Return the text of a mask (h, w), whose top left pixel lies `at` = (x, y) of an image of `size`."""
    width, height = size or mask.shape[::-1]
    columns = np.zeros((mask.shape[1], height), dtype=np.int8)
    columns[:, at[1] : at[1] + mask.shape[0]] = mask.T
    inside = np.concatenate([[0], columns.ravel(), [0]])
    edges = np.flatnonzero(np.diff(inside)) + at[0] * height
    runs = np.diff(np.concatenate([[0], edges, [width * height]]))
    return from_runs(runs[: len(runs) - (len(edges) > 0 and runs[-1] == 0)], (width, height))


def from_runs(runs: NDArray[np.integer], size: Size) -> bytes:
    """Return the text of run lengths (R,) that fill an image of `size`."""
    counts = {"size": [size[1], size[0]], "counts": runs.tolist()}
    return bytes(coco.frPyObjects(counts, size[1], size[0])["counts"])


def run_lengths(mask: bytes, size: Size) -> NDArray[np.int64]:
    """Return the run lengths (R,) of a mask. Raises ValueError if the text is none, or fills no image of `size`."""
    codes = np.frombuffer(mask, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError(f"{mask[:20]!r} is no compressed run-length encoding")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if places.max() >= MAX_CHARACTERS:
        raise ValueError(f"{mask[:20]!r} has a run of more pixels than any image")
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    negative = codes[ends] & 16 > 0
    numbers -= np.where(negative, np.int64(1) << (5 * (places[ends] + 1)), 0)
    runs = numbers.copy()
    for first in (1, 2):  # from the fourth run on, the text has the difference to the last run but one
        runs[first::2] = np.cumsum(numbers[first::2])
    check_runs(runs, size)
    return runs


def check_runs(runs: NDArray[np.int64], size: Size) -> None:
    """Raise ValueError unless run lengths fill an image of `size`."""
    if runs.min(initial=0) < 0:
        raise ValueError(f"a run of {runs.min()} pixels")
    total = int(runs.sum())
    if total != size[0] * size[1]:
        raise ValueError(f"runs of {total} pixels in an image of {size[0]} x {size[1]}")


def decode_mask(mask: bytes, size: Size) -> NDArray[np.bool_]:
    """Return a mask (H, W) of an image of `size`. Raises ValueError if the text is not one."""
    runs = run_lengths(mask, size)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size).T


def mask_area(mask: bytes, size: Size) -> int:
    """Return how many pixels are in a mask. Raises ValueError if the text is none."""
    return int(run_lengths(mask, size)[1::2].sum())


def box_around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the corners (x0, y0, x1, y1) of the smallest box around the pixels of a mask (H, W) that has one."""
    y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def contains(mask: bytes, size: Size, x: int, y: int) -> bool:
    """Return True if the pixel in column `x` and row `y` is in a mask."""
    ends = np.cumsum(run_lengths(mask, size))
    return bool(np.searchsorted(ends, x * size[1] + y, side="right") % 2)


def as_coco(mask: bytes, size: Size) -> dict[str, Any]:
    """Return a mask as COCO's JSON has it."""
    return {"size": [size[1], size[0]], "counts": mask.decode("ascii")}


def mask_overlaps(one: Sequence[bytes], other: Sequence[bytes], size: Size) -> NDArray[np.float64]:
    """Return the intersection over union (N, M) of masks of one image."""
    if not (len(one) and len(other)):
        return np.zeros((len(one), len(other)))
    found = coco.iou(*([as_coco(mask, size) for mask in masks] for masks in (one, other)), [0] * len(other))
    return np.array(found, dtype=np.float64).reshape(len(one), len(other))


def resize_masks(masks: Iterable[bytes], size: Size, box: Box, to: Size) -> NDArray[np.object_]:
    """Return the masks of the region `box` of an image of `size`, at the size `to`, by the nearest pixel."""
    if box == FULL_IMAGE and size == to:
        return rle_array(masks)
    return rle_array(
        encode_mask(resample_nearest(decode_mask(mask, size), box, to[::-1], fill=False)) for mask in masks
    )


def surest_objects(value: Value, to: Size) -> NDArray[np.int32]:
    """Return the index of the object with the highest score at each pixel of the image resized to `to`: (H, W).

    Given a label of the task masks; -1 where there is no object. Of equal scores, the first object counts.
    """
    surest, size = np.full(to[::-1], -1, dtype=np.int32), (int(value["size"][0]), int(value["size"][1]))
    for index in np.argsort(-value["scores"], kind="stable")[::-1]:
        mask = decode_mask(value["masks"][index], size)
        surest[resample_nearest(mask, FULL_IMAGE, to[::-1], fill=False)] = index
    return surest
