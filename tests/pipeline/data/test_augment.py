"""Augmentation: the same parameters for image and labels, within the bounds that the config states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

import tasks
from pipeline.data.augment import (
    PAD_COLOR,
    AugmentParams,
    full_image_box,
    relative_square,
    sample_params,
    seeded_generator,
    transform_image,
    transform_label,
    valid_size,
)
from pipeline.recipe.augment import AugmentConfig, Resize
from pipeline.stores.labels import LabelSpace, Value
from pipeline.stores.rasters import FULL_IMAGE
from tests.augment import NO_AUGMENTATION


def sample(config: AugmentConfig, rng: np.random.Generator) -> AugmentParams:
    return sample_params(config, rng, (1.0, 1.0), 64)


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
def test_sample_params_crops_inside_the_image_within_area_and_aspect(area: float, aspect: float, seed: int) -> None:
    box = sample(AugmentConfig(area=area, aspect=aspect), seeded_generator(seed)).box
    width, height = box[2] - box[0], box[3] - box[1]
    assert min(box) >= 0
    assert max(box) <= 1 + 1e-12
    assert width * height >= area - 1e-9
    assert max(width / height, height / width) <= aspect + 1e-9


def test_sample_params_uses_the_whole_range_of_area_aspect_and_place() -> None:
    config = AugmentConfig(area=0.3, aspect=2)
    boxes = np.array([sample(config, seeded_generator(seed)).box for seed in range(2000)])
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(axis=1)
    assert areas.min() < 0.32
    assert areas.max() > 0.97
    ratios = sides[:, 0] / sides[:, 1]
    assert ratios.min() < 0.6
    assert ratios.max() > 1.7
    assert boxes[:, 0].min() < 0.01
    assert boxes[:, 2].max() > 0.99


def test_sample_params_flips_every_other_image() -> None:
    flips = [sample(AugmentConfig(), seeded_generator(seed)).flip for seed in range(2000)]
    assert 900 < sum(flips) < 1100
    assert not any(sample(AugmentConfig(flip=0), seeded_generator(seed)).flip for seed in range(50))
    assert all(sample(AugmentConfig(flip=1), seeded_generator(seed)).flip for seed in range(50))


def test_sample_params_depends_on_the_seed_alone() -> None:
    config = AugmentConfig()
    assert sample(config, seeded_generator(3, 5)) == sample(config, seeded_generator(3, 5))
    assert sample(config, seeded_generator(3, 5)) != sample(config, seeded_generator(5, 3))
    assert sample(config, seeded_generator(3, 5)) != sample(config, seeded_generator(3, 6))


def test_sample_params_always_consumes_the_same_randomness() -> None:
    one, other = seeded_generator(1), seeded_generator(1)
    sample(NO_AUGMENTATION, one)
    sample(AugmentConfig(), other)
    assert one.random() == other.random()


def test_transform_image_leaves_the_image_as_it_is_by_default() -> None:
    assert sample(NO_AUGMENTATION, seeded_generator(0)) == AugmentParams(FULL_IMAGE, False, None)
    pixels = gradient(48, 48)
    np.testing.assert_array_equal(transform_image(Image.fromarray(pixels), AugmentParams(), 48), pixels)


def test_transform_image_mirrors_and_then_resizes_the_box() -> None:
    image = Image.fromarray(gradient())
    box = (0.25, 0.5, 0.75, 1.0)
    seen = transform_image(image, AugmentParams(box), 32).astype(float)
    assert seen.shape == (32, 32, 3)
    across = (0.25 + 0.5 * (np.arange(32) + 0.5) / 32) * 250
    down = (0.5 + 0.5 * (np.arange(32) + 0.5) / 32) * 250
    np.testing.assert_allclose(seen[2:-2, 2:-2, 0], np.tile(across, (32, 1))[2:-2, 2:-2], atol=2)
    np.testing.assert_allclose(seen[2:-2, 2:-2, 1], np.tile(down[:, None], (1, 32))[2:-2, 2:-2], atol=2)
    left = AugmentParams((0.125, 0.5, 0.625, 1.0), True)
    mirrored_box = AugmentParams((0.375, 0.5, 0.875, 1.0))
    np.testing.assert_array_equal(transform_image(image, left, 32), transform_image(image, mirrored_box, 32)[:, ::-1])


def test_transform_image_averages_when_shrinking() -> None:
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = Image.fromarray(np.repeat(checks[..., None], 3, axis=2).astype(np.uint8))
    assert np.abs(transform_image(image, AugmentParams(), 8).astype(float) - 127.5).max() < 4


def jittered(pixel: tuple[int, int, int], **strengths: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a pixel after augmentation with these strengths, and the three draws in [-1, 1]."""
    unchanged = {"area": 1.0, "aspect": 1.0, "flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    config = AugmentConfig.model_validate({**unchanged, **strengths})
    params = sample(config, seeded_generator(7))
    draws = 2 * seeded_generator(7).random(8)[5:] - 1
    seen = transform_image(Image.new("RGB", (4, 4), pixel), params, 4)
    return seen[0, 0].astype(float), draws


def test_color_of_params_is_brightness_contrast_and_saturation() -> None:
    pixel = np.array([100.0, 60.0, 20.0])
    seen, draws = jittered((100, 60, 20), brightness=0.4)
    np.testing.assert_allclose(seen, pixel * (1 + 0.4 * draws[0]), atol=1)
    seen, draws = jittered((100, 60, 20), contrast=0.4)
    np.testing.assert_allclose(seen, 127.5 + (pixel - 127.5) * (1 + 0.4 * draws[1]), atol=1)
    seen, draws = jittered((100, 60, 20), saturation=0.4)
    grey = 0.299 * 100 + 0.587 * 60 + 0.114 * 20
    np.testing.assert_allclose(seen, grey + (pixel - grey) * (1 + 0.4 * draws[2]), atol=1)


@pytest.mark.parametrize("seed", range(8))
def test_transform_label_agrees_with_transform_image(seed: int) -> None:
    """Class and depth are written in the picture's own pixels, so they must agree under every augmentation."""
    pixels = gradient(96, 128)
    depth = tasks.label(LabelSpace("depth"))
    classes = tasks.label(LabelSpace("segmentation", tuple("abcde")))
    metres = {"depth": pixels[..., 0].astype(np.float32) / 10 + 1}
    quarter: Value = {"classes": (pixels[..., 1] // 50).astype(np.uint16), "confidence": np.ones((96, 128), np.float32)}
    params = sample(AugmentConfig(brightness=0, contrast=0, saturation=0), seeded_generator(seed))
    seen = transform_image(Image.fromarray(pixels), params, 64).astype(float)
    deep = transform_label(depth, metres, params, 64)["depth"]
    np.testing.assert_allclose((deep - 1) * 10, seen[..., 0], atol=3.5)  # half a pixel of either raster
    named = transform_label(classes, quarter, params, 64)["classes"]
    agree = named == np.clip(seen[..., 1] // 50, 0, 4)
    assert agree.mean() > 0.95
    assert np.ptp(named) >= 2


def test_transform_label_keeps_a_box_where_its_object_is() -> None:
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
        params = sample(AugmentConfig(area=0.4, brightness=0, contrast=0, saturation=0), seeded_generator(seed))
        bright = transform_image(Image.fromarray(pixels), params, 64)[..., 0] > 127
        seen = transform_label(label, value, params, 64)
        assert seen["size"].tolist() == [64, 64]
        if len(seen["boxes"]):
            rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
            shown = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(seen["boxes"][0], shown, atol=1.5)
            met += 1
        else:
            share = (params.box[2] - params.box[0]) * (params.box[3] - params.box[1])
            assert bright.mean() * share < 0.31 * (20 * 30) / (80 * 100)
    assert met > 10


JITTER = AugmentConfig(scale=(0.3, 1.6), aspect=1, brightness=0, contrast=0, saturation=0)


def test_augment_config_refuses_scale_with_area_and_factors_in_the_wrong_order() -> None:
    with pytest.raises(ValidationError, match=r"area: 0.5 can't be given with scale: \[0.1, 2.0\]"):
        AugmentConfig(scale=(0.1, 2.0), area=0.5)
    assert AugmentConfig.model_validate(JITTER.model_dump(mode="json")) == JITTER
    with pytest.raises(ValidationError, match=r"\[2.0, 0.1\] has the larger factor first"):
        AugmentConfig(scale=(2.0, 0.1))


@pytest.mark.parametrize(("size", "valid"), [((96, 64), (64, 44)), ((64, 96), (44, 64)), ((1000, 3), (64, 4))])
def test_whole_box_pads_the_shorter_side_to_whole_cells(size: tuple[int, int], valid: tuple[int, int]) -> None:
    assert full_image_box("stretch", size, 64) == FULL_IMAGE
    box = full_image_box("pad", size, 64)
    assert (box[:2], valid_size(box, 64)) == ((0, 0), valid)
    assert sample_params(NO_AUGMENTATION, seeded_generator(0), relative_square("pad", size), 64).box == box
    assert full_image_box("pad", (96, 96), 64) == FULL_IMAGE


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_sample_params_scales_images_up_and_down(resize: Resize) -> None:
    size = (96, 64)
    square = relative_square(resize, size)
    boxes = [sample_params(JITTER, seeded_generator(seed), square, 64).box for seed in range(2000)]
    x0, y0, x1, y1 = np.array(boxes).T
    scales = square[0] / (x1 - x0)
    assert 0.29 < scales.min() < 0.33
    assert 1.57 < scales.max() <= 1.6
    assert np.median(scales) == pytest.approx(0.95, abs=0.05), "drawn evenly"
    for low, high in ((x0, x1), (y0, y1)):
        length = high - low
        assert (low[length > 1] == 0).all(), "padding is at the right and the bottom"
        assert (high[length <= 1] <= 1 + 1e-9).all()
    for box in boxes[:200]:
        width, height = valid_size(box, 64)
        assert width == 64 or width % 4 == 0
        assert height == 64 or height % 4 == 0
        if (width, height) != (64, 64) and min(width, height) > 16:
            aspect = size[0] / size[1] if resize == "pad" else 1.0
            cut = ((box[2] - box[0]) * width / 64, (box[3] - box[1]) * height / 64)  # of the image, by either side
            assert width / height == pytest.approx(aspect * min(cut[0], 1) / min(cut[1], 1), rel=0.15)


@pytest.mark.parametrize("flip", [False, True])
def test_transform_image_pads_at_the_right_and_the_bottom(flip: bool) -> None:
    image = Image.fromarray(gradient(32, 64))
    padded = transform_image(image, AugmentParams(full_image_box("pad", (64, 32), 64), flip), 64)
    whole = transform_image(image, AugmentParams(FULL_IMAGE, flip), 64)
    assert (padded[32:] == PAD_COLOR).all()
    np.testing.assert_allclose(padded[:32].astype(float), whole[::2].astype(float), atol=8)
    assert (np.diff(padded[16, :, 0].astype(int)) * (-1 if flip else 1) >= 0).all(), "mirrored inside its own region"


@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("seed", range(12))
def test_transform_label_of_scaled_and_padded_image_is_unknown_outside(resize: Resize, seed: int) -> None:
    pixels = gradient(96, 128)
    label = tasks.label(LabelSpace("depth"))
    metres = {"depth": pixels[..., 0].astype(np.float32) / 10 + 1}
    params = sample_params(JITTER, seeded_generator(seed), relative_square(resize, (128, 96)), 64)
    seen = transform_image(Image.fromarray(pixels), params, 64).astype(float)
    width, height = valid_size(params.box, 64)
    for side in (64, 16):  # pixels, and cells of a dense map
        deep = transform_label(label, metres, params, side)["depth"]
        columns, rows = width * side // 64, height * side // 64
        known = np.zeros((side, side), bool)
        known[:rows, :columns] = True
        np.testing.assert_array_equal(deep > 0, known)
        image = seen.reshape(side, 64 // side, side, 64 // side, 3).mean(axis=(1, 3))
        cell = 250 / columns  # gray levels
        np.testing.assert_allclose((deep[known] - 1) * 10, image[known][:, 0], atol=max(3.5, cell))


@pytest.mark.parametrize("seed", range(20))
def test_transform_label_keeps_a_box_where_its_padded_object_is(seed: int) -> None:
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels[30:50, 40:70] = 255
    label = tasks.label(LabelSpace("detection", ("block",)))
    value = {
        "boxes": np.array([[40, 30, 70, 50]], np.float32),
        "scores": np.ones(1, np.float32),
        "classes": np.zeros(1, np.int32),
        "size": np.array([100, 80], np.int32),
    }
    params = sample_params(JITTER, seeded_generator(seed), relative_square("pad", (100, 80)), 128)
    ys, xs = np.nonzero(transform_image(Image.fromarray(pixels), params, 128)[..., 0] > 128)
    boxes = transform_label(label, value, params, 128)["boxes"]
    if len(boxes):
        np.testing.assert_allclose(boxes[0], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1.5)
