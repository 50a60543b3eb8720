"""Test image corruptions: deterministic, stronger with severity, and as strong as published."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corruption_functions
from pipeline.data.augment import AugmentParams, transform_image

Pixels = NDArray[np.uint8]
LEVELS = range(1, 6)
every_corruption = pytest.mark.parametrize("name", CORRUPTIONS)


@pytest.fixture(scope="module")
def photograph() -> Pixels:
    """Return an image of the size that the constants are for."""
    read: Callable[[], Pixels] = data.astronaut
    return transform_image(Image.fromarray(read()), AugmentParams(), 224)


def difference(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@every_corruption
def test_corrupt_keeps_shape_and_type(name: str, photograph: Pixels) -> None:
    for level in LEVELS:
        worse = corrupt(photograph, name, level)
        assert worse.shape == photograph.shape
        assert worse.dtype == np.uint8


@every_corruption
def test_corrupt_gets_stronger_with_severity(name: str, photograph: Pixels) -> None:
    before = photograph.copy()
    found = [difference(photograph, corrupt(photograph, name, level)) for level in LEVELS]
    assert found[0] > 0.5
    assert found == sorted(set(found)), found
    assert np.array_equal(photograph, before), "the image itself is left as it is"


@every_corruption
def test_corrupt_is_deterministic(name: str, photograph: Pixels) -> None:
    assert np.array_equal(corrupt(photograph, name, 3), corrupt(photograph.copy(), name, 3))


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise"])
def test_corrupt_noise_differs_between_images(name: str, photograph: Pixels) -> None:
    grey = np.full_like(photograph, 128)
    other = grey.copy()
    other[0, 0, 0] = 129
    noise, another = (corrupt(each, name, 3).astype(int) - each for each in (grey, other))
    assert np.mean(noise[1:] == another[1:]) < 0.95


@pytest.mark.parametrize("black", [True, False])
@every_corruption
def test_corrupt_flat_images(name: str, black: bool) -> None:
    flat = np.full((32, 32, 3), 0 if black else 255, np.uint8)
    for level in LEVELS:
        assert corrupt(flat, name, level).shape == (32, 32, 3)


@pytest.mark.parametrize(("level", "sigma"), list(enumerate((0.08, 0.12, 0.18, 0.26, 0.38), 1)))
def test_gaussian_noise_is_as_strong_as_published(level: int, sigma: float) -> None:
    """Compare with the deviation of noise that is clipped at black and white."""
    grey = np.full((224, 224, 3), 128, np.uint8)
    noise = corrupt(grey, "gaussian_noise", level).astype(float) - 128
    drawn = np.random.default_rng(0).normal(scale=255 * sigma, size=200_000)
    assert noise.std() == pytest.approx(np.clip(drawn, -128, 127).std(), rel=0.02)


@pytest.mark.parametrize(("level", "share"), list(enumerate((0.03, 0.06, 0.09, 0.17, 0.27), 1)))
def test_impulse_noise_hits_as_many_values_as_published(level: int, share: float) -> None:
    grey = np.full((224, 224, 3), 128, np.uint8)
    assert np.mean(corrupt(grey, "impulse_noise", level) != 128) == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize(("level", "factor"), list(enumerate((0.4, 0.3, 0.2, 0.1, 0.05), 1)))
def test_contrast_shrinks_as_published(level: int, factor: float, photograph: Pixels) -> None:
    """Contrast is the deviation from each channel's mean."""
    spread = corrupt(photograph, "contrast", level).std((0, 1)) / photograph.std((0, 1))
    assert spread == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize(("level", "more"), list(enumerate((0.1, 0.2, 0.3, 0.4, 0.5), 1)))
def test_brightness_raises_the_value_and_keeps_the_hue(level: int, more: float) -> None:
    dark = np.full((8, 8, 3), (100, 50, 25), np.uint8)
    bright = corrupt(dark, "brightness", level)[0, 0].astype(float)
    assert bright.max() == pytest.approx(100 + 255 * more, abs=1)
    assert bright / bright.max() == pytest.approx([1, 0.5, 0.25], abs=0.01)


def test_shot_noise_has_as_few_photons_as_published() -> None:
    """A Poisson count has its mean as variance."""
    grey = np.full((224, 224, 3), 60, np.uint8)
    mean = 60 / 255 * 60
    assert corrupt(grey, "shot_noise", 1).std() == pytest.approx(255 / 60 * np.sqrt(mean), rel=0.03)


def test_corruption_functions_has_every_corruption_at_three_severities(photograph: Pixels) -> None:
    found = list(corruption_functions())
    assert [name for name, _ in found] == [name for name in CORRUPTIONS for _ in SEVERITIES]
    assert len(CORRUPTIONS) == 8
    for (name, change), level in zip(found, SEVERITIES * len(CORRUPTIONS), strict=True):
        assert np.array_equal(change(photograph), corrupt(photograph, name, level))
