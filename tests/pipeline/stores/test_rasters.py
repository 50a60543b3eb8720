"""Rasters over an image."""

from __future__ import annotations

import numpy as np

from pipeline.stores.rasters import resample_nearest


def test_resample_nearest_takes_the_nearest_cell_and_fills_outside() -> None:
    grid = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(resample_nearest(grid, (0, 0, 1, 1), (3, 4), -1), grid)
    np.testing.assert_array_equal(resample_nearest(grid, (0.5, 0, 1, 1), (3, 2), -1), grid[:, 2:])
    np.testing.assert_array_equal(resample_nearest(grid, (0, 0, 1, 1), (6, 8), -1), grid.repeat(2, 0).repeat(2, 1))
    outside = resample_nearest(grid, (-0.5, 0, 0.5, 1), (3, 4), -1)
    np.testing.assert_array_equal(outside, np.hstack([np.full((3, 2), -1), grid[:, :2]]))
    np.testing.assert_array_equal(grid, np.arange(12).reshape(3, 4))
