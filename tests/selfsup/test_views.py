"""Crops and color jitter against torchvision, budgets of stages, and local views that are split."""

from __future__ import annotations

import collections
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from pipeline.data.augment import seeded_generator
from pipeline.recipe.stage import LabelledConfig, PolicyConfig, StageConfig
from selfsup.components.method import Policy, Position, ViewKind
from selfsup.stages import crops
from selfsup.stages.budget import Budget, budget_of
from selfsup.stages.color_jitter import ColorJitter
from selfsup.stages.crops import Crop, draw_crop
from selfsup.stages.objective import override_policies
from selfsup.stages.stream import ImageViews, LocalViews

DRAWS = 4000


def moments(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([values.mean(0), values.std(0)])


@pytest.mark.parametrize("area", [(0.08, 1.0), (0.2, 1.0), (0.05, 0.14)])
@pytest.mark.parametrize("size", [(200, 200), (300, 140), (90, 250)])
def test_draw_crop_is_distributed_as_random_resized_crop(area: tuple[float, float], size: tuple[int, int]) -> None:
    policy, (width, height) = Policy(area=area), size
    crops = [draw_crop(policy, size, seeded_generator(0, number)) for number in range(DRAWS)]
    torch.manual_seed(0)
    canvas = torch.empty(3, height, width)
    draws = [v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(32, scale=area), [canvas]) for _ in range(DRAWS)]
    expected = np.array([[each["left"], each["top"], each["width"], each["height"]] for each in draws], np.float64)
    drawn = np.array([crop[:4] for crop in crops], np.float64)
    error = 4 * np.concatenate([expected.std(0), expected.std(0)]) / np.sqrt(DRAWS)
    assert (np.abs(moments(drawn) - moments(expected)) < error + 0.5).all()
    assert np.mean([crop.flip for crop in crops]) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 3000), (2000, 4000)])
def test_draw_views_decodes_as_many_pixels_as_the_smallest_crop_needs(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crop that had fewer pixels than its view would be blurred, and only because the image was decoded small."""
    drawn, really = list[tuple[int, Crop]](), crops.resized_crop

    def resized_crop(image: Image.Image, crop: Crop, side: int) -> NDArray[np.uint8]:
        drawn.append((image.width, crop))
        return really(image, crop, side)

    monkeypatch.setattr(crops, "resized_crop", resized_crop)
    policy, data = Policy(area=(0.08, 0.08)), io.BytesIO()
    Image.new("RGB", size).save(data, "JPEG")
    for seed in range(8):
        crops.draw_views(data.getvalue(), [ViewKind(224, policy)] * 8, seeded_generator(seed))
    assert min(min(crop.width, crop.height) for _, crop in drawn) >= 224
    assert max(width for width, _ in drawn) < size[0], "the image was decoded in reduced size"


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_draw_crop_is_inside_the_image(width: int, height: int, seed: int) -> None:
    crop = draw_crop(Policy(), (width, height), seeded_generator(seed))
    assert crop.width > 0
    assert crop.height > 0
    assert 0 <= crop.left <= width - crop.width
    assert 0 <= crop.top <= height - crop.height


def picture() -> torch.Tensor:
    """Return an image (3, 48, 48) uint8 with smooth and sharp colors."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 48), indexing="ij")
    image = torch.stack([x, y, ((x * 6).floor() + (y * 6).floor()) % 2])
    return (image * 220 + 20).to(torch.uint8)


def features(images: torch.Tensor) -> NDArray[np.float64]:
    """Measure images (B, 3, S, S) in [0, 1]: mean, deviation and sharpness of each channel."""
    flat = images.double()
    sharp = (flat[..., 1:] - flat[..., :-1]).abs().mean((2, 3))
    return torch.cat([flat.mean((2, 3)), flat.std((2, 3)), sharp], dim=1).numpy()


def jitter(b: float, c: float, s: float, h: float) -> Callable[[Image.Image], Image.Image]:
    changes: Callable[[Image.Image], Image.Image] = v2.RandomApply([v2.ColorJitter(b, c, s, h)], p=0.8)
    return changes


@pytest.mark.parametrize(
    ("policy", "reference"),
    [
        (Policy(grayscale=0, blur=0), jitter(0.8, 0.8, 0.8, 0.2)),
        (Policy(brightness=0.4, contrast=0, saturation=0, hue=0, grayscale=0, blur=0), jitter(0.4, 0, 0, 0)),
        (Policy(brightness=0, contrast=0.4, saturation=0, hue=0, grayscale=0, blur=0), jitter(0, 0.4, 0, 0)),
        (Policy(brightness=0, contrast=0, saturation=0.8, hue=0, grayscale=0, blur=0), jitter(0, 0, 0.8, 0)),
        (Policy(brightness=0, contrast=0, saturation=0, hue=0.2, grayscale=0, blur=0), jitter(0, 0, 0, 0.2)),
        (Policy(jitter=0, grayscale=0.2, blur=0), v2.RandomGrayscale(0.2)),
        (Policy(jitter=0, grayscale=0, blur=0.5), v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.5)),
        (Policy(jitter=0, grayscale=0, blur=0, solarize=0.2), v2.RandomSolarize(128, p=0.2)),
    ],
)
def test_color_jitter_is_distributed_as_torchvision_transforms(
    policy: Policy, reference: Callable[[Image.Image], Image.Image]
) -> None:
    """Means and deviations of `features` over many draws for one image."""
    image, count = picture(), 1500
    torch.manual_seed(0)
    ours = features(ColorJitter(ViewKind(48, policy))(image.expand(count, -1, -1, -1)))
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    drawn = np.stack([np.asarray(reference(pil)) for _ in range(count)])
    theirs = features(torch.from_numpy(drawn).permute(0, 3, 1, 2).double() / 255)
    error = 4 * theirs.std(0) * np.sqrt(2 / count) + 0.006  # theirs are rounded to 256 levels after every change
    np.testing.assert_array_less(np.abs(ours.mean(0) - theirs.mean(0)), error)
    np.testing.assert_array_less(np.abs(ours.std(0) - theirs.std(0)), error + 0.05 * theirs.std(0))


def test_color_jitter_without_transforms_keeps_the_image() -> None:
    unchanged = ViewKind(48, Policy(jitter=0, grayscale=0, blur=0))
    found = ColorJitter(unchanged)(picture()[None])
    torch.testing.assert_close(found[0], picture().float() / 255)


def test_override_policies_keeps_area_of_local_views() -> None:
    kinds = [ViewKind(64, Policy()), ViewKind(32, Policy(area=(0.05, 0.14)), True)]
    changed = override_policies(kinds, PolicyConfig(area=(0.5, 1.0), grayscale=0, jitter=0))
    assert [kind.policy.area for kind in changed] == [(0.5, 1.0), (0.05, 0.14)]
    assert {kind.policy.grayscale for kind in changed} == {0}
    assert {kind.policy.blur for kind in changed} == {0.5}
    assert override_policies(kinds, PolicyConfig()) == kinds


@given(st.integers(2, 64), st.integers(1, 20), st.integers(0, 30))
def test_budget_has_as_many_views_in_every_step(batch: int, half: int, until: int) -> None:
    labelled = min(2 * half, 2 * (batch - 1))
    budget = Budget(40, batch, labelled, until)
    for step in range(0, 40, 3):
        beside = labelled if step < until else 0
        assert 2 * budget.unlabelled(step) + beside == 2 * batch
        assert budget.unlabelled_before(step) == sum(budget.unlabelled(each) for each in range(step))
    assert budget.views_before(budget.steps, 2) == 2 * batch * budget.steps
    assert budget.views_before(budget.steps, 1) == batch * budget.steps + labelled // 2 * until


@pytest.mark.parametrize("until", [0.25, 0.5, 1.0])
def test_budget_of_stage_with_labels_has_more_steps(until: float) -> None:
    plain = StageConfig(name="a", method="simclr", data=["pool"], batch=64, epochs=3)
    stage = plain.model_copy(update={"labels": LabelledConfig(until=until)})
    budget = budget_of(stage, 40, 1000)
    assert budget.steps > budget_of(plain, 0, 1000).steps == 47
    assert budget.unlabelled_before(budget.steps) == pytest.approx(3000, abs=64)
    assert budget.labelled_until == round(until * budget.steps)


def test_local_views_split_keeps_classes_complete() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    plain = [ImageViews(f"k{number}", [image, image], number) for number in range(6)]
    labelled = [ImageViews("l", [image], 100 + number, number % 5) for number in range(20)]
    share = LocalViews([*plain, *labelled], Position(4, 9, 0), list(range(5)), 6)
    assert share.keys == [f"k{number}" for number in range(6)]
    pieces = share.split(2)
    assert [len(piece.keys) for piece in pieces] == [3, 3]
    found = [[] if piece.classes is None else sorted(set(piece.classes.tolist())) for piece in pieces]
    assert sorted(label for piece in found for label in piece) == [0, 1, 2, 3, 4]
    assert all(len(labels) != 1 for labels in found)
    for piece in pieces:
        if piece.classes is not None:
            assert set(collections.Counter(piece.classes.tolist()).values()) == {4}
