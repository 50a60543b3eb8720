"""Views: the same draw for image and labels, within the bounds that the config states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import tasks
from pipeline.data.augment import WHOLE, View, draw, generator, view_image, view_label
from pipeline.recipe.augment import NOTHING, AugmentConfig
from pipeline.stores.labels import LabelSpace, Value


def gradient(height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """A picture whose red grows to the right and whose green grows downwards, both from about 0 to about 250."""
    across, down = (np.arange(width) + 0.5) / width * 250, (np.arange(height) + 0.5) / height * 250
    red, green = np.meshgrid(across, down)
    return np.rint(np.stack([red, green, np.full_like(red, 60)], axis=-1)).astype(np.uint8)


@given(
    area=st.floats(0.05, 1),
    aspect=st.floats(1, 3),
    seed=st.integers(0, 10_000),
)
def test_a_crop_is_inside_and_as_large_and_as_square_as_asked(area: float, aspect: float, seed: int) -> None:
    box = draw(AugmentConfig(area=area, aspect=aspect), generator(seed)).box
    width, height = box[2] - box[0], box[3] - box[1]
    assert min(box) >= 0
    assert max(box) <= 1 + 1e-12
    assert width * height >= area - 1e-9
    assert max(width / height, height / width) <= aspect + 1e-9


def test_crops_use_all_of_their_range() -> None:
    config = AugmentConfig(area=0.3, aspect=2)
    boxes = np.array([draw(config, generator(seed)).box for seed in range(2000)])
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(axis=1)
    assert areas.min() < 0.32
    assert areas.max() > 0.97
    ratios = sides[:, 0] / sides[:, 1]
    assert ratios.min() < 0.6
    assert ratios.max() > 1.7
    assert boxes[:, 0].min() < 0.01
    assert boxes[:, 2].max() > 0.99


def test_one_view_in_two_is_mirrored() -> None:
    flips = [draw(AugmentConfig(), generator(seed)).flip for seed in range(2000)]
    assert 900 < sum(flips) < 1100
    assert not any(draw(AugmentConfig(flip=0), generator(seed)).flip for seed in range(50))
    assert all(draw(AugmentConfig(flip=1), generator(seed)).flip for seed in range(50))


def test_a_draw_depends_on_its_seed_alone() -> None:
    config = AugmentConfig()
    assert draw(config, generator(3, 5)) == draw(config, generator(3, 5))
    assert draw(config, generator(3, 5)) != draw(config, generator(5, 3))
    assert draw(config, generator(3, 5)) != draw(config, generator(3, 6))


def test_a_draw_always_consumes_the_same() -> None:
    one, other = generator(1), generator(1)
    draw(NOTHING, one)
    draw(AugmentConfig(), other)
    assert one.random() == other.random()


def test_nothing_is_the_whole_image_as_it_is() -> None:
    assert draw(NOTHING, generator(0)) == View(WHOLE, False, None)
    pixels = gradient(48, 48)
    np.testing.assert_array_equal(view_image(Image.fromarray(pixels), View(), 48), pixels)


def test_a_view_is_the_box_resized_and_then_mirrored() -> None:
    image = Image.fromarray(gradient())
    box = (0.25, 0.5, 0.75, 1.0)
    seen = view_image(image, View(box), 32).astype(float)
    assert seen.shape == (32, 32, 3)
    across = (0.25 + 0.5 * (np.arange(32) + 0.5) / 32) * 250
    down = (0.5 + 0.5 * (np.arange(32) + 0.5) / 32) * 250
    np.testing.assert_allclose(seen[2:-2, 2:-2, 0], np.tile(across, (32, 1))[2:-2, 2:-2], atol=2)
    np.testing.assert_allclose(seen[2:-2, 2:-2, 1], np.tile(down[:, None], (1, 32))[2:-2, 2:-2], atol=2)
    np.testing.assert_array_equal(view_image(image, View(box, True), 32), seen[:, ::-1])


def test_shrinking_averages() -> None:
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = Image.fromarray(np.repeat(checks[..., None], 3, axis=2).astype(np.uint8))
    assert np.abs(view_image(image, View(), 8).astype(float) - 127.5).max() < 4


def colour(pixel: tuple[int, int, int], **strengths: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a view makes of a pixel, and its three draws in [-1, 1]."""
    quiet = {"area": 1.0, "aspect": 1.0, "flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    config = AugmentConfig(**{**quiet, **strengths})
    view = draw(config, generator(7))
    draws = 2 * generator(7).random(8)[5:] - 1
    seen = view_image(Image.new("RGB", (4, 4), pixel), view, 4)
    return seen[0, 0].astype(float), draws


def test_brightness_contrast_and_saturation_are_what_they_are_called() -> None:
    pixel = np.array([100.0, 60.0, 20.0])
    seen, draws = colour((100, 60, 20), brightness=0.4)
    np.testing.assert_allclose(seen, pixel * (1 + 0.4 * draws[0]), atol=1)
    seen, draws = colour((100, 60, 20), contrast=0.4)
    np.testing.assert_allclose(seen, 127.5 + (pixel - 127.5) * (1 + 0.4 * draws[1]), atol=1)
    seen, draws = colour((100, 60, 20), saturation=0.4)
    grey = 0.299 * 100 + 0.587 * 60 + 0.114 * 20
    np.testing.assert_allclose(seen, grey + (pixel - grey) * (1 + 0.4 * draws[2]), atol=1)


@pytest.mark.parametrize("seed", range(8))
def test_image_and_labels_are_seen_through_one_view(seed: int) -> None:
    """Class and depth are written in the picture's own pixels, so every view must show them agreeing."""
    pixels = gradient(96, 128)
    depth = tasks.label(LabelSpace("depth"))
    classes = tasks.label(LabelSpace("segmentation", tuple("abcde")))
    metres = {"depth": pixels[..., 0].astype(np.float32) / 10 + 1}
    quarter: Value = {"classes": (pixels[..., 1] // 50).astype(np.uint16), "confidence": np.ones((96, 128), np.float32)}
    view = draw(AugmentConfig(brightness=0, contrast=0, saturation=0), generator(seed))
    seen = view_image(Image.fromarray(pixels), view, 64).astype(float)
    deep = view_label(depth, metres, view, 64)["depth"]
    np.testing.assert_allclose((deep - 1) * 10, seen[..., 0], atol=3.5)  # half a pixel of either raster
    named = view_label(classes, quarter, view, 64)["classes"]
    agree = named == np.clip(seen[..., 1] // 50, 0, 4)
    assert agree.mean() > 0.95
    assert np.ptp(named) >= 2


def test_a_box_is_where_its_thing_is_in_every_view() -> None:
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels[30:50, 40:70] = 255
    label = tasks.label(LabelSpace("detection", ("block",)))
    value: Value = {
        "boxes": np.array([[40, 30, 70, 50]], np.float32),
        "scores": np.ones(1, np.float32),
        "classes": np.zeros(1, np.int32),
        "size": np.array([100, 80], np.int32),
    }
    met = 0
    for seed in range(30):
        view = draw(AugmentConfig(area=0.4, brightness=0, contrast=0, saturation=0), generator(seed))
        bright = view_image(Image.fromarray(pixels), view, 64)[..., 0] > 127
        seen = view_label(label, value, view, 64)
        assert seen["size"].tolist() == [64, 64]
        if len(seen["boxes"]):
            rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
            shown = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(seen["boxes"][0], shown, atol=1.5)
            met += 1
        else:
            share = (view.box[2] - view.box[0]) * (view.box[3] - view.box[1])
            assert bright.mean() * share < 0.31 * (20 * 30) / (80 * 100)
    assert met > 10
