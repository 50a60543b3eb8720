"""Images of other channels than RGB in every method: their views, their tone, and their losses."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.data.augment import AugmentParams, seeded_generator, transform_image
from pipeline.models.backbone import Backbone
from selfsup.components.method import Method, Policy, ViewKind
from selfsup.mae import patchify
from selfsup.stages.color_jitter import ColorJitter, ToneJitter
from selfsup.stages.crops import Crop, draw_views, resized_crop
from selfsup.stages.objective import StageObjective
from tests.selfsup.small_methods import METHODS, SETTING, config, views, with_teacher

CHANNELS = 5
STATISTICS = ((2000.0,) * CHANNELS, (500.0,) * CHANNELS)


def bands(side: int = 48, count: int = CHANNELS) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.normal(2000, 500, (side, side + 16, count)).astype(np.float32)


def batch() -> Tensor:
    return torch.rand(4, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0)) * 1000 + 280


def test_resized_crop_of_bands_resizes_each_channel_as_pillow_does() -> None:
    image, crop = bands(), Crop(7, 5, 40, 30, flip=True)
    view = resized_crop(image, crop, 24)
    assert view.shape == (24, 24, CHANNELS)
    assert view.dtype == np.float32
    for channel in range(CHANNELS):
        expected = Image.fromarray(image[..., channel]).resize((24, 24), Image.Resampling.BILINEAR, box=(7, 5, 47, 35))
        np.testing.assert_allclose(view[..., channel], np.asarray(expected)[:, ::-1], rtol=1e-5)


def test_draw_views_of_bands_crops_them_as_pictures_are_cropped() -> None:
    """The same draws, whatever the channels."""
    shades, file, data = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1)), io.BytesIO(), io.BytesIO()
    np.save(file, np.stack([shades] * CHANNELS, axis=2).astype(np.float32))
    Image.fromarray(shades).convert("RGB").save(data, "PNG")
    kinds = [ViewKind(32, Policy()), ViewKind(16, Policy(area=(0.2, 0.5)))]
    drawn = draw_views(file.getvalue(), kinds, seeded_generator(3), CHANNELS)
    pictures = draw_views(data.getvalue(), kinds, seeded_generator(3))
    for view, picture in zip(drawn, pictures, strict=True):
        assert view.shape == (*picture.shape[:2], CHANNELS)
        np.testing.assert_allclose(view[..., 0], picture[..., 0], atol=1)


def test_tone_jitter_is_the_tone_of_supervised_training() -> None:
    torch.manual_seed(0)
    images = batch()
    changed = ToneJitter(Policy(jitter=1))(images)
    torch.manual_seed(0)
    _, brightness, contrast = torch.rand(3, len(images))
    for number, (before, after) in enumerate(zip(images, changed, strict=True)):
        tone = [1 + 0.8 * (2 * float(draw[number]) - 1) for draw in (brightness, contrast)]
        expected = transform_image(before.permute(1, 2, 0).numpy(), AugmentParams(tone=(tone[0], tone[1])), 16)
        np.testing.assert_allclose(after.permute(1, 2, 0).numpy(), expected, rtol=1e-4)


def test_tone_jitter_follows_an_offset_of_the_unit() -> None:
    """Degrees or kelvins: what changes in the image is the same."""
    torch.manual_seed(1)
    changed = ToneJitter(Policy(jitter=0.5))(batch())
    torch.manual_seed(1)
    torch.testing.assert_close(ToneJitter(Policy(jitter=0.5))(batch() - 273.15), changed - 273.15, rtol=1e-4, atol=0.01)


def test_tone_jitter_changes_the_share_of_images_that_the_policy_says() -> None:
    torch.manual_seed(0)
    images = torch.rand(1000, 1, 2, 2)
    same = (ToneJitter(Policy(jitter=0.8))(images) - images).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert same.float().mean().item() == pytest.approx(0.2, abs=0.04)


def test_color_jitter_keeps_bands_in_their_own_numbers() -> None:
    images = batch()
    plain = ColorJitter(ViewKind(16, Policy(jitter=0, blur=0, grayscale=1, solarize=1)), CHANNELS)
    assert plain(images).equal(images), "hue, saturation, grayscale and solarize are for pictures"
    torch.manual_seed(0)
    blurred = ColorJitter(ViewKind(16, Policy(jitter=0, blur=1)), CHANNELS)(images)
    assert float(blurred.min()) > 280
    assert float(blurred.std()) < float(images.std())


def method_for_bands(name: str) -> Method:
    stage = config(name, **({"pretexts": ["rotation", "jigsaw"]} if name == "pretext" else {}))
    torch.manual_seed(0)
    backbone = Backbone("test_vit" if name == "mae" else "test_resnet", 32, STATISTICS)
    names = ("a", "b") if stage.labels else ()
    return stage.build_for_stage(backbone, with_teacher(stage, SETTING._replace(class_names=names))).train()


@pytest.mark.parametrize("name", [name for name in METHODS if not config(name).taught_by])
def test_method_learns_from_bands(name: str) -> None:
    """Its losses are finite, and its first convolution has gradients for every channel."""
    method = method_for_bands(name)
    shown = views(method)
    as_bands = [500 * image.repeat(1, 2, 1, 1)[:, :CHANNELS] + 1800 for image in shown.unlabelled]
    labelled = None if shown.labelled is None else 500 * shown.labelled.repeat(1, 2, 1, 1)[:, :CHANNELS] + 1800
    shown = dataclasses.replace(shown, unlabelled=as_bands, labelled=labelled)
    with torch.no_grad():
        method.initialize((torch.arange(start, start + 8), shown.unlabelled) for start in (0, 8))
    objective = StageObjective(method, method.view_kinds())
    total, logged = objective(shown, {"images": 1.0, "labelled": 1.0})
    total.backward()
    assert all(value.isfinite() for value in logged.values())
    first = next(module for module in method.backbone.model.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.grad is not None
    assert (first.weight.grad.abs().sum(dim=(0, 2, 3)) > 0).tolist() == [True] * CHANNELS


@pytest.mark.parametrize("name", METHODS)
def test_needs_pictures_is_told_of_methods_that_a_teacher_of_pictures_teaches(name: str) -> None:
    assert config(name).needs_pictures == (config(name).taught_by is not None or name == "pretext")


def test_needs_pictures_is_not_told_of_pretexts_without_functions() -> None:
    assert not config("pretext", pretexts=["rotation"]).needs_pictures


def test_patchify_of_bands_has_all_their_numbers() -> None:
    patches = patchify(batch(), 8)
    assert patches.shape == (4, 4, 8 * 8 * CHANNELS)
    assert patches.flatten().sort()[0].equal(batch().flatten().sort()[0])
