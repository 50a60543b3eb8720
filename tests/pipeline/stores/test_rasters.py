"""Rasters over an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.stores.rasters import FULL_IMAGE, cosines, resample_linear, resample_nearest


def test_resample_nearest_takes_the_nearest_cell_and_fills_outside() -> None:
    grid = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(resample_nearest(grid, (0, 0, 1, 1), (3, 4), -1), grid)
    np.testing.assert_array_equal(resample_nearest(grid, (0.5, 0, 1, 1), (3, 2), -1), grid[:, 2:])
    np.testing.assert_array_equal(resample_nearest(grid, (0, 0, 1, 1), (6, 8), -1), grid.repeat(2, 0).repeat(2, 1))
    outside = resample_nearest(grid, (-0.5, 0, 0.5, 1), (3, 4), -1)
    np.testing.assert_array_equal(outside, np.hstack([np.full((3, 2), -1), grid[:, :2]]))
    np.testing.assert_array_equal(grid, np.arange(12).reshape(3, 4))


@pytest.mark.parametrize("size", [(5, 7), (3, 3), (9, 20), (1, 1)])
def test_resample_linear_of_the_whole_image_agrees_with_torch(size: tuple[int, int]) -> None:
    grid = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(grid).permute(2, 0, 1)[None], size, mode="bilinear")
    np.testing.assert_allclose(resample_linear(grid, FULL_IMAGE, size), expected[0].permute(1, 2, 0), atol=1e-5)


def test_resample_linear_is_unknown_outside_and_keeps_dtype() -> None:
    grid = np.arange(1.0, 13).reshape(3, 4, 1)
    outside = resample_linear(grid, (-0.5, 0, 0.5, 1), (3, 4))
    np.testing.assert_allclose(outside, np.hstack([np.zeros((3, 2, 1)), grid[:, :2]]))
    assert outside.dtype == np.float64
    assert resample_linear(grid.astype(np.float32), FULL_IMAGE, (2, 2)).dtype == np.float32


def test_resample_linear_takes_known_cells_alone() -> None:
    grid = np.array([[[2.0, 1], [0, 0], [4, 3]]])
    found = resample_linear(grid, FULL_IMAGE, (1, 12))[0]
    np.testing.assert_allclose(found, [[2, 1]] * 4 + [[0, 0]] * 4 + [[4, 3]] * 4)


def test_cosines_are_0_without_a_direction() -> None:
    one, other = np.array([[3.0, 4], [1, 1], [0, 0]]), np.array([[6.0, 8], [-1, -1], [1, 2]])
    np.testing.assert_allclose(cosines(one, other), [1, -1, 0])
