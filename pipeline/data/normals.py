"""Surface normals from a depth map and its camera."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RADIUS = 3
SAME_SURFACE = 0.02
"""Neighbours whose distance is off by more than this share from where the pixel's slope leads are no part of it."""
ROUGH = 0.007
"""Where the fitted plane leaves more than this share of the distance (root mean square), there is no plane."""
LEAST_NEIGHBOURS = 16
"""Of 49, the pixel included: what the corner of an image has."""


@dataclasses.dataclass(frozen=True)
class PinholeCamera:
    """A pinhole camera, in pixels of the depth map; the centre of the first pixel is (0, 0)."""

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        if self.fx <= 0 or self.fy <= 0:
            raise ValueError(f"focal lengths {self.fx}, {self.fy} must be positive")


def normals_from_depth(depth: NDArray[np.float32], camera: PinholeCamera) -> NDArray[np.float32]:
    """Depth (H, W) along the optical axis, in any unit, 0 = unknown -> unit normals (H, W, 3), float32.

    Axes: x right, y up, z towards the camera; every normal faces the camera. (0, 0, 0) where it is unknown: at pixels
    of unknown depth, with too few neighbours of the same surface, or where these don't lie in a plane (a depth step).

    On a plane a X + b Y + c Z = 1 seen by a pinhole camera, 1/Z = a x + b y + c with x = X/Z, y = Y/Z: inverse depth is
    linear in the pixel, however steep the plane. So (a, b, c), which is the normal, comes from a linear least squares
    fit to the 7 x 7 neighbours, of those that are known and carry on the pixel's own slope.
    """
    known = depth > 0
    inverse = np.divide(1, depth, out=np.zeros(depth.shape), where=known)
    sums = _sums(inverse, 1 / camera.fx, 1 / camera.fy)
    a, b, excess, left = _fit(sums)
    y, x = np.indices(depth.shape, np.float64)
    c = inverse + excess - a * (x - camera.cx) / camera.fx - b * (y - camera.cy) / camera.fy
    # image axes are x right, y down, z away from the camera, and (a, b, c) points away from it
    normals = np.stack([-a, b, c], axis=-1)
    length = np.linalg.norm(normals, axis=-1)
    good = known & (sums[0] >= LEAST_NEIGHBOURS) & (left <= (ROUGH * inverse) ** 2) & (length > 0)
    out = np.zeros((*depth.shape, 3), np.float32)
    out[good] = normals[good] / length[good, None]
    return out


def _neighbours(grid: Floats) -> Iterator[tuple[int, int, Floats]]:
    """(dx, dy, the value at that offset from every pixel; 0 outside) for the window around each pixel."""
    h, w = grid.shape
    padded = np.pad(grid, RADIUS)
    for dy in range(-RADIUS, RADIUS + 1):
        for dx in range(-RADIUS, RADIUS + 1):
            yield dx, dy, padded[RADIUS + dy : RADIUS + dy + h, RADIUS + dx : RADIUS + dx + w]


def _slope(inverse: Floats, axis: int) -> Floats:
    """The change from pixel to pixel along an axis: of the two sides the flatter, which is not across a step."""
    apart = np.diff(inverse, axis=axis)
    known = inverse > 0
    both = np.logical_and(*(np.delete(known, end, axis) for end in (0, -1)))
    apart[~both] = np.inf
    sides = [np.insert(apart, end, np.inf, axis) for end in (0, apart.shape[axis])]
    flatter = np.where(np.abs(sides[0]) < np.abs(sides[1]), sides[0], sides[1])
    return np.where(np.isinf(flatter), 0, flatter)


def _sums(inverse: Floats, step_x: float, step_y: float) -> Floats:
    """Sums over each pixel's neighbours on its surface, (10, H, W): of 1, x, y, xx, xy, yy, d, xd, yd, dd.

    x, y are offsets from the pixel in steps; d is how much the neighbour's inverse depth exceeds the pixel's, which
    keeps the squares from cancelling.
    """
    sums = np.zeros((10, *inverse.shape))
    near, slope_x, slope_y = SAME_SURFACE * inverse, _slope(inverse, 1), _slope(inverse, 0)
    for dx, dy, value in _neighbours(inverse):
        d = value - inverse
        kept = ((value > 0) & (np.abs(d - slope_x * dx - slope_y * dy) <= near)).astype(np.float64)
        d *= kept
        x, y = dx * step_x, dy * step_y
        for index, factor in enumerate((1.0, x, y, x * x, x * y, y * y)):
            sums[index] += factor * kept
        for index, factor in enumerate((1.0, x, y), start=6):
            sums[index] += factor * d
        sums[9] += d * d
    return sums


def _fit(sums: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Least squares d = a x + b y + e over each pixel's neighbours -> a, b, e and the mean square of what is left.

    Each (H, W); what is left is infinite where the neighbours lie on a line.
    """
    x, y, xx, xy, yy, d, xd, yd, dd = sums[1:] / np.maximum(sums[0], 1)
    xx, xy, yy = xx - x * x, xy - x * y, yy - y * y
    xd, yd, dd = xd - x * d, yd - y * d, dd - d * d
    determinant = xx * yy - xy * xy
    solvable = determinant > 1e-6 * xx * yy
    scale = np.divide(1, determinant, out=np.zeros(d.shape), where=solvable)
    a, b = (xd * yy - yd * xy) * scale, (yd * xx - xd * xy) * scale
    left = np.where(solvable, dd - a * xd - b * yd, np.inf)
    return a, b, d - a * x - b * y, left
