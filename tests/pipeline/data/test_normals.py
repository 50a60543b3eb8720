"""Normals from depth, of surfaces whose true normals are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.data.normals import PinholeCamera, normals_from_depth

CAMERA = PinholeCamera(fx=120.0, fy=110.0, cx=41.0, cy=28.5)
SHAPE = (60, 80)


def rays() -> NDArray[np.float64]:
    """Return the point at depth 1 that each pixel sees, (H, W, 3): x right, y down, z away from the camera."""
    y, x = np.indices(SHAPE)
    return np.stack([(x - CAMERA.cx) / CAMERA.fx, (y - CAMERA.cy) / CAMERA.fy, np.ones(SHAPE)], axis=-1)


def plane(normal: tuple[float, float, float], distance: float) -> NDArray[np.float32]:
    """Return the depth of the plane with this normal (x right, y up, z towards the camera) at this distance."""
    toward = np.array([normal[0], -normal[1], -normal[2]]) / np.linalg.norm(normal)
    return (-distance / (rays() @ toward)).astype(np.float32)


def degrees(found: NDArray[np.float32], true: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the angles between known and true normals."""
    known = np.abs(found).sum(-1) > 0
    return np.degrees(np.arccos(np.clip((found * true).sum(-1)[known], -1, 1)))


@pytest.mark.parametrize(
    "normal", [(0, 0, 1), (0, 1, 0.6), (0, -1, 0.8), (1, 0, 0.6), (-1, 0.2, 0.7), (0.6, 0.6, 0.5), (0.2, 0.9, 0.35)]
)
def test_normals_from_depth_of_planes(normal: tuple[float, float, float]) -> None:
    """(0, 1, 0.6): a floor seen from above; (1, 0, 0.6): a wall on the left."""
    found = normals_from_depth(plane(normal, 2.0), CAMERA)
    true = np.array(normal) / np.linalg.norm(normal)
    assert found.dtype == np.float32
    assert (np.abs(np.linalg.norm(found, axis=-1) - 1) < 1e-5).all(), "known everywhere, the border too"
    assert degrees(found, true).max() < 0.1


def test_normals_from_depth_of_a_sphere() -> None:
    center, radius = np.array([0.1, -0.1, 2.0]), 0.7
    points = rays()
    a, b, c = (points**2).sum(-1), points @ center, center @ center - radius**2
    inside = b**2 > a * c
    depth = np.where(inside, (b - np.sqrt(np.where(inside, b**2 - a * c, 0))) / a, 0)
    true = (points * depth[..., None] - center) / radius * [1, -1, -1]
    found = normals_from_depth(depth.astype(np.float32), CAMERA)
    assert not found[~inside].any()
    assert (np.abs(found).sum(-1) > 0)[inside].mean() > 0.9
    angles = degrees(found, true)
    assert np.median(angles) < 1.5
    assert np.percentile(angles, 95) < 10


def test_normals_from_depth_face_the_camera_and_do_not_depend_on_the_unit() -> None:
    depth = plane((0.5, 0.7, 0.4), 2.0)
    found = normals_from_depth(depth, CAMERA)
    towards = (found * rays() * [1, -1, -1]).sum(-1)
    assert (towards < 0).all()
    assert np.allclose(found, normals_from_depth(depth * 1000, CAMERA), atol=1e-4)


def test_normals_from_depth_ignore_unknown_pixels() -> None:
    depth = plane((0.3, 0.4, 1), 2.0)
    holes = np.random.default_rng(0).random(SHAPE) < 0.3
    depth[holes] = 0
    found = normals_from_depth(depth, CAMERA)
    assert not found[holes].any()
    assert (np.abs(found).sum(-1) > 0)[~holes].mean() > 0.95
    assert degrees(found, np.array([0.3, 0.4, 1]) / np.linalg.norm([0.3, 0.4, 1])).max() < 0.1


@pytest.mark.parametrize("share", [0.025, 0.1, 1.0])
@pytest.mark.parametrize("normal", [(0, 0, 1), (0.5, 0.3, 1), (0, 1, 0.6)])
def test_normals_from_depth_make_no_slope_of_a_depth_step(share: float, normal: tuple[float, float, float]) -> None:
    """One surface behind another, by a share of the distance: what lies on neither is not invented between them."""
    depth = plane(normal, 2.0)
    depth[:, 40:] *= 1 + share
    found = normals_from_depth(depth, CAMERA)
    assert degrees(found, np.array(normal) / np.linalg.norm(normal)).max() < 0.1
    assert (np.abs(found).sum(-1) > 0).mean() > 0.9


def test_normals_from_depth_are_unknown_between_two_surfaces() -> None:
    """Sensors see the average of both at the edge: such pixels have no surface."""
    depth = np.full(SHAPE, 2.0, np.float32)
    depth[:, 41:], depth[:, 40] = 3.0, 2.3
    found = normals_from_depth(depth, CAMERA)
    assert not found[:, 40].any()
    assert degrees(found, np.array([0, 0, 1.0])).max() < 0.1


@pytest.mark.parametrize("depth_of_leaves", [0.03, 0.1])
def test_normals_from_depth_are_unknown_where_there_is_no_surface(depth_of_leaves: float) -> None:
    leaves = 2 + np.random.default_rng(0).uniform(-2, 2, SHAPE) * depth_of_leaves
    found = normals_from_depth(leaves.astype(np.float32), CAMERA)
    assert (np.abs(found).sum(-1) > 0).mean() < 0.1


def test_normals_from_depth_in_noisy_millimetres_are_off_by_a_few_degrees() -> None:
    depth = plane((0, 1, 0.8), 1.0)
    noisy = depth + np.random.default_rng(0).normal(0, 0.0015, SHAPE) * depth**2
    found = normals_from_depth(np.round(noisy, 3).astype(np.float32), CAMERA)
    assert np.median(degrees(found, np.array([0, 1, 0.8]) / np.linalg.norm([0, 1, 0.8]))) < 3


def test_normals_from_depth_need_known_neighbors_off_a_line() -> None:
    assert not normals_from_depth(np.zeros(SHAPE, np.float32), CAMERA).any()
    line = np.zeros(SHAPE, np.float32)
    line[30] = 2
    assert not normals_from_depth(line, CAMERA).any(), "a line lies in many planes"
    strip = np.zeros(SHAPE, np.float32)
    strip[30:33] = 2
    assert normals_from_depth(strip, CAMERA)[31, 20:60].any()


def test_pinhole_camera_needs_a_focal_length() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        PinholeCamera(0, 100, 10, 10)
