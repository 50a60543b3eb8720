"""Applicability: uniform on images of the teacher's kind, near 0 on others, and stored with the teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.applicability import NEIGHBORS, Applicability
from tests.disk import made_in

WIDTH = 16


def drawn(count: int, seed: int, shift: float = 0.0) -> NDArray[np.float32]:
    """Return vectors around a few centers; `shift` moves them elsewhere."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(size=(5, WIDTH)) * 2 + shift
    return (centers[rng.integers(5, size=count)] + rng.normal(size=(count, WIDTH))).astype(np.float32)


def test_applicability_is_uniform_on_images_of_the_same_kind() -> None:
    found = Applicability.fit(drawn(600, 1), drawn(500, 2))(drawn(4000, 3))
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    for level in (0.05, 0.25, 0.5, 0.75):
        # of 500 held-out images, a share has a standard deviation of up to 0.022, and the draw adds 0.008
        assert np.mean(found < level) == pytest.approx(level, abs=0.07)


def test_applicability_is_near_0_on_foreign_images() -> None:
    found = Applicability.fit(drawn(600, 1), drawn(500, 2))(drawn(300, 3, shift=6.0))
    assert np.mean(found < 0.05) > 0.95


def test_applicability_is_the_share_of_held_out_images_as_far() -> None:
    """On a circle: training images at 0 degrees, held-out ones at 10, 20, 30 and 40, and questions in between."""

    def at(*degrees: float) -> NDArray[np.float32]:
        angles = np.deg2rad(degrees)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * 7

    applicability = Applicability.fit(at(*[0.0] * NEIGHBORS), at(40, 10, 30, 20))
    assert applicability(at(0, 5, 15, 25, 35, 90, 180)).tolist() == [1, 1, 0.75, 0.5, 0.25, 0, 0]


def test_applicability_needs_no_more_training_images_than_there_are() -> None:
    found = Applicability.fit(drawn(2, 1), drawn(20, 2))(drawn(3, 3))
    assert found.shape == (3,)


def test_applicability_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    applicability = Applicability.fit(drawn(50, 1), drawn(20, 2))
    (tmp_path / "out").mkdir()
    applicability.save(tmp_path / "out")
    loaded = Applicability.load(made_in(tmp_path / "out"))
    assert loaded is not None
    assert np.array_equal(loaded(drawn(30, 3)), applicability(drawn(30, 3)))


def test_applicability_load_returns_none_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert Applicability.load(made_in(tmp_path / "out")) is None
