"""Rasters over an image, of any resolution: regions of them, single cells, and two of them compared.

`Box` is a region (x0, y0, x1, y1) relative to the image, which is (0, 0, 1, 1). It may reach outside the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
FULL_IMAGE: Box = (0.0, 0.0, 1.0, 1.0)
DENSE_STRIDE = 4
"""Pixels of a network's input per cell of most rasters that it learns. Padding begins between cells."""


def resample_nearest(grid: NDArray[Any], box: Box, size: tuple[int, int], fill: Any) -> NDArray[Any]:
    """Sample `grid` (H, W, ...) at the centres of a raster of `size` (h, w) laid over the relative `box`: (h, w, ...).

    Cells outside the image get `fill`. The nearest cell is taken, because class ids, metres at an edge and unit vectors
    have no mean.
    """
    h, w = grid.shape[:2]
    ys = np.floor((box[1] + (np.arange(size[0]) + 0.5) / size[0] * (box[3] - box[1])) * h).astype(np.int64)
    xs = np.floor((box[0] + (np.arange(size[1]) + 0.5) / size[1] * (box[2] - box[0])) * w).astype(np.int64)
    outside_y, outside_x = (ys < 0) | (ys >= h), (xs < 0) | (xs >= w)
    out = grid[np.clip(ys, 0, h - 1)[:, None], np.clip(xs, 0, w - 1)[None, :]]
    if outside_y.any() or outside_x.any():
        out[outside_y] = fill
        out[:, outside_x] = fill
    return out


def resample_linear(grid: NDArray[Any], box: Box, size: tuple[int, int]) -> NDArray[Any]:
    """Interpolate `grid` (H, W, C), of floats, at the centres of a raster of `size` laid over `box`: (h, w, C).

    Bilinearly, between known cells: those whose entries are not all 0. Cells of the raster are unknown, and 0, outside
    the image and where known cells have less than half of the weight.
    """
    rows = linear_weights(box[1], box[3], grid.shape[0], size[0])
    columns = linear_weights(box[0], box[2], grid.shape[1], size[1])
    weight = (rows @ grid.any(axis=-1) @ columns.T)[..., None]
    sums = columns.astype(grid.dtype) @ np.tensordot(rows.astype(grid.dtype), grid, 1)
    return np.divide(sums, weight, out=np.zeros_like(sums), where=weight >= 0.5, casting="same_kind")


def linear_weights(start: float, end: float, cells: int, count: int) -> NDArray[np.float64]:
    """Return the weights (count, cells) of cells in points that are spread evenly from `start` to `end`, in [0, 1].

    Beyond the centres of the first and the last cell these go on; points that are outside have no weights.
    """
    places = (start + (np.arange(count) + 0.5) / count * (end - start)) * cells
    inside = (places >= 0) & (places < cells)
    nearest = np.clip(places - 0.5, 0, cells - 1)
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(nearest[:, None] - np.arange(cells)), 0) * inside[:, None]
    return weights


def cell_at(grid: NDArray[Any], point: tuple[float, float]) -> Any:
    """Return the entry of a raster (h, w, ...) over the image at `point` = (x, y) in [0, 1]."""
    x, y = (min(int(part * side), side - 1) for part, side in zip(point, (grid.shape[1], grid.shape[0]), strict=True))
    return grid[y, x]


def on_finer_raster(one: NDArray[Any], other: NDArray[Any], fill: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return two rasters over one image, both resampled to the larger height and width."""
    size = max(one.shape[0], other.shape[0]), max(one.shape[1], other.shape[1])
    return resample_nearest(one, FULL_IMAGE, size, fill), resample_nearest(other, FULL_IMAGE, size, fill)


def cosines(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosines (...) between the vectors of two arrays (..., K); 0 where one of two is 0."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.divide((one * other).sum(axis=-1), lengths, out=np.zeros_like(lengths), where=lengths > 0)


def mean_where_known(difference: NDArray[Any], one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the mean of `difference` (h, w), in [0, 1], over the cells that are known in both masks (h, w).

    Where they share no cell: 1 if just one of them knows any, else 0.
    """
    both = one & other
    return float(difference[both].mean()) if both.any() else float(one.any() != other.any())
