"""Look at a sample of masks and say what their pixels are: ids, colours, or grey on two sides of a threshold."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import decode_colors, decode_gray, decode_numbers
from pipeline.errors import DataError
from pipeline.sources import Stamp
from pipeline.sources._files import read_image
from pipeline.sources._masks import pack_colors, unpack_color
from pipeline.storage.path import StoragePath

SAMPLE = 60
"""Masks that are looked at, from the whole of a folder."""
MOST_IDS, MOST_COLORS = 200, 256
"""More different numbers or colours are no classes, but depth or a photograph."""
VOID = 255
"""The id that many sets give to pixels of no class, beside ids from 0 on."""
EXTREME_SHARE = 0.85
"""Share of pixels near black or white above which grey masks are those of two classes, blurred or stored with loss."""
NEAR = 32
"""Distance from black or white of a pixel that is near it."""
FEW_IDS = 16
"""So many grey levels are ids, even if most pixels are black or white."""
THRESHOLD = 128


def survey_masks(files: Sequence[StoragePath]) -> Mapping[str, Any] | None:
    """Return the keys of `kind: masks` by which such masks are read, None if they seem to be none.

    Classes are called `class_0` and so on, by their ids or in order of their colours.

    Example:
        survey_masks(files) == {"classes": {0: "class_0", 255: "class_255"}}
        survey_masks(files) == {"colors": {"class_0": [0, 0, 0], "class_1": [128, 64, 128]}}
        survey_masks(files) == {"classes": ["class_0", "class_1"], "threshold": 128}
    """
    step = max(1, len(files) // SAMPLE)
    return _survey(tuple((file, file.stamp()) for file in files[::step][:SAMPLE]))


@functools.lru_cache(maxsize=8)  # `must init` asks several kinds about a folder
def _survey(stamped: tuple[tuple[StoragePath, Stamp], ...]) -> Mapping[str, Any] | None:
    sample = [data for data in (_read(file) for file, _ in stamped) if data]
    if not sample:
        return None
    try:
        ids = _distinct([decode_numbers(data) for data in sample])
    except DataError:
        return _survey_colors(sample)
    if ids.dtype.kind == "f" or not len(ids) or ids[0] < 0:
        return None
    if len(ids) > FEW_IDS and (gray := _survey_gray(sample, lossy=False)):
        return gray
    return _name_ids(ids.tolist()) if len(ids) <= MOST_IDS and ids[-1] <= VOID else None


def _read(file: StoragePath) -> bytes | None:
    try:
        return read_image(file)
    except (DataError, OSError):
        return None


def _distinct(rasters: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the sorted numbers that occur."""
    return np.unique(np.concatenate([np.unique(raster) for raster in rasters]))


def _name_ids(ids: Sequence[int]) -> Mapping[str, Any]:
    void = VOID in ids and len(ids) > 2
    classes = {number: f"class_{number}" for number in ids if not (void and number == VOID)}
    return {"classes": classes, **({"ignore": [VOID]} if void else {})}


def _survey_colors(sample: Sequence[bytes]) -> Mapping[str, Any] | None:
    """Return the keys for masks in colours, or in JPEG."""
    try:
        colors = _distinct([pack_colors(decode_colors(data)) for data in sample]).tolist()
    except DataError:
        return _survey_gray(sample, lossy=True)
    if len(colors) > MOST_COLORS:
        return _survey_gray(sample, lossy=True)
    return {"colors": {f"class_{number}": unpack_color(color) for number, color in enumerate(colors)}}


def _survey_gray(sample: Sequence[bytes], lossy: bool) -> Mapping[str, Any] | None:
    """Return the keys for grey masks whose pixels are black or white, but for edges; None for others."""
    counts = np.zeros(VOID + 1, np.int64)
    for data in sample:
        try:
            gray = decode_gray(data)
        except DataError:
            continue
        if gray.dtype != np.uint8:
            return None
        counts += np.bincount(gray.ravel(), minlength=len(counts))
    dark, light = counts[:NEAR].sum(), counts[-NEAR:].sum()
    # ids from 0 to 33 are all dark, and what is blurred has levels halfway
    halfway = lossy or counts[THRESHOLD - NEAR : THRESHOLD + NEAR].any()
    two = dark and light and halfway and (dark + light) / counts.sum() >= EXTREME_SHARE
    return {"classes": ["class_0", "class_1"], "threshold": THRESHOLD} if two else None
