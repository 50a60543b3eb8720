"""Surface normals from a depth map and its pinhole camera, by plane fits to small windows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RADIUS = 3
"""Of the window of neighbours around a pixel, 7 x 7."""
SAME_SURFACE_TOLERANCE = 0.02
"""Neighbours belong to the pixel's surface if their distance is within this share of what its slope predicts."""
MAX_RESIDUAL = 0.007
"""Largest root mean square residual of a plane fit, as a share of the distance; above it, there is no plane."""
MIN_NEIGHBORS = 16
"""Of 49, the pixel included: the corner of an image has as many."""


@dataclasses.dataclass(frozen=True)
class PinholeCamera:
    """Intrinsics of a pinhole camera, in pixels of the depth map; the centre of the first pixel is (0, 0)."""

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        if self.fx <= 0 or self.fy <= 0:
            raise ValueError(f"focal lengths {self.fx}, {self.fy} must be positive")
        if not all(map(math.isfinite, (self.fx, self.fy, self.cx, self.cy))):
            raise ValueError(f"{self} has numbers that are not finite")


def normals_from_depth(depth: NDArray[np.float32], camera: PinholeCamera) -> NDArray[np.float32]:
    """Return unit normals (H, W, 3) float32 in camera axes: x right, y up, z towards the camera, which they face.

    A normal is (0, 0, 0) where it is unknown: at pixels of unknown depth, with too few neighbours on the same surface,
    or whose neighbours don't lie in a plane (a depth step).

    On a plane a X + b Y + c Z = 1 seen by a pinhole camera, 1/Z = a x + b y + c with x = X/Z, y = Y/Z: inverse depth is
    linear in the pixel, however steep the plane. So (a, b, c), which is the normal, comes from a linear least squares
    fit to those of the 7 x 7 neighbours that are known and continue the pixel's own slope.

    Args:
        depth: (H, W) along the optical axis, in any unit; 0 where unknown.
    """
    known = depth > 0
    inverse = np.divide(1, depth, out=np.zeros(depth.shape), where=known)
    sums = _sums(inverse, 1 / camera.fx, 1 / camera.fy)
    a, b, offset, residual = _fit_planes(sums)
    y, x = np.indices(depth.shape, np.float64)
    c = inverse + offset - a * (x - camera.cx) / camera.fx - b * (y - camera.cy) / camera.fy
    # (a, b, c) is in image axes, x right, y down, z away from the camera, and points away from it
    normals = np.stack([-a, b, c], axis=-1)
    length = np.linalg.norm(normals, axis=-1)
    good = known & (sums[0] >= MIN_NEIGHBORS) & (residual <= (MAX_RESIDUAL * inverse) ** 2) & (length > 0)
    out = np.zeros((*depth.shape, 3), np.float32)
    out[good] = normals[good] / length[good, None]
    return out


def _slope(inverse: Floats, axis: int) -> Floats:
    """Return the change per pixel along an axis: that of the flatter side, which does not cross a depth step."""
    change = np.diff(inverse, axis=axis)
    known = inverse > 0
    both = np.logical_and(*(np.delete(known, end, axis) for end in (0, -1)))
    change[~both] = np.inf
    sides = [np.insert(change, end, np.inf, axis) for end in (0, change.shape[axis])]
    flatter = np.where(np.abs(sides[0]) < np.abs(sides[1]), sides[0], sides[1])
    return np.where(np.isinf(flatter), 0, flatter)


def _sums(inverse: Floats, step_x: float, step_y: float) -> Floats:
    """Return sums over each pixel's neighbours on its surface, (10, H, W): of 1, x, y, xx, xy, yy, d, xd, yd, dd.

    x, y are offsets from the pixel in steps; d is how much the neighbour's inverse depth exceeds the pixel's, which
    keeps the squares from cancelling.
    """
    sums = np.zeros((10, *inverse.shape))
    tolerance, slope_x, slope_y = SAME_SURFACE_TOLERANCE * inverse, _slope(inverse, 1), _slope(inverse, 0)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(inverse, RADIUS), inverse.shape)
    for row, column in np.ndindex(windows.shape[:2]):
        dx, dy, value = column - RADIUS, row - RADIUS, windows[row, column]  # 0 outside the image
        d = value - inverse
        same = ((value > 0) & (np.abs(d - slope_x * dx - slope_y * dy) <= tolerance)).astype(np.float64)
        d *= same
        x, y = dx * step_x, dy * step_y
        for index, factor in enumerate((1.0, x, y, x * x, x * y, y * y)):
            sums[index] += factor * same
        for index, factor in enumerate((1.0, x, y), start=6):
            sums[index] += factor * d
        sums[9] += d * d
    return sums


def _fit_planes(sums: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Fit d = a x + b y + e to each pixel's neighbours by least squares; return a, b, e and the mean squared residual.

    Each is (H, W); the residual is infinite where the neighbours lie on a line.
    """
    x, y, xx, xy, yy, d, xd, yd, dd = sums[1:] / np.maximum(sums[0], 1)
    xx, xy, yy = xx - x * x, xy - x * y, yy - y * y
    xd, yd, dd = xd - x * d, yd - y * d, dd - d * d
    determinant = xx * yy - xy * xy
    solvable = determinant > 1e-6 * xx * yy
    scale = np.divide(1, determinant, out=np.zeros(d.shape), where=solvable)
    a, b = (xd * yy - yd * xy) * scale, (yd * xx - xd * xy) * scale
    residual = np.where(solvable, dd - a * xd - b * yd, np.inf)
    return a, b, d - a * x - b * y, residual
