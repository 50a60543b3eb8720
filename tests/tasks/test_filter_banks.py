"""Filter banks: histograms of gradients, edges and colors of images whose answer is known; and their mirror images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from skimage.feature import hog
from torch import Tensor

from tasks.texture.filter_banks import ColorBank, EdgeBank, GradientHistograms, build_bank
from tasks.texture.functions import COLORS, EDGE_SCALES, response_names
from tasks.texture.label import TaskLabel, mirror
from teachers import analytic

FUNCTIONS = ("gabor", "hog", "edges", "colors")


def pictures(seed: int = 0, side: int = 64) -> Tensor:
    """Return smooth random pictures (2, 3, side, side) uint8."""
    noise = torch.rand(2, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().byte()


def ramp(angle: float, side: int = 64) -> Tensor:
    """Return a picture that gets brighter in a direction, degrees counter-clockwise from the right."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    turn = np.radians(angle)
    return (127 + 2 * ((x - side / 2) * np.cos(turn) - (y - side / 2) * np.sin(turn))).expand(1, 3, side, side)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_build_bank_responds_in_0_to_1_with_a_channel_for_each_name(function: str) -> None:
    names = response_names(function, [4.0], 4)  # type: ignore[arg-type]
    responses = build_bank(function, [4.0], 4)(pictures())  # type: ignore[arg-type]
    assert responses.shape == (2, len(names), 16, 16)
    assert responses.min() >= 0
    assert responses.max() <= 1
    assert responses.std() > 0.01
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_build_bank_of_a_mirrored_image_is_the_mirrored_label(function: str) -> None:
    bank = build_bank(function, [4.0], 4)  # type: ignore[arg-type]
    images = pictures(1)
    names = tuple(response_names(function, [4.0], 4))  # type: ignore[arg-type]
    mirrored = bank(images)[:, mirror(names)].flip(3)
    torch.testing.assert_close(bank(images.flip(3)), mirrored, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("angle", "number"), [(0, 0), (45, 1), (90, 2), (135, 3), (180, 0), (225, 1)])
def test_gradient_histograms_find_the_direction(angle: float, number: int) -> None:
    inside = GradientHistograms(4)(ramp(angle))[0, :, 4:-4, 4:-4].mean(dim=(1, 2))
    assert inside[number] > 0.8
    assert sum(inside) - inside[number] < 0.02


def test_gradient_histograms_share_a_direction_between_the_two_nearest() -> None:
    inside = GradientHistograms(4)(ramp(22.5))[0, :, 4:-4, 4:-4].mean(dim=(1, 2))
    assert inside[0] == pytest.approx(inside[1].item(), rel=0.02)
    assert inside[0] > 0.5
    assert inside[2:].max() < 0.02


def test_gradient_histograms_do_not_depend_on_contrast() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 255
    bank = GradientHistograms(6)
    torch.testing.assert_close(bank(images * 0.5), bank(images), atol=0.05, rtol=0)
    assert not bank(torch.full((1, 3, 32, 32), 90.0)).any()


def test_gradient_histograms_agree_with_scikit_image() -> None:
    """Its pixels vote for one direction each, its angles grow clockwise, and its cells do not overlap.

    Twelve directions there, whose first one begins at 0, are six here, whose first one is about 0.
    """
    image = pictures(3)[:1]
    votes = hog(
        image[0].float().mean(dim=0).numpy() / 255,
        orientations=12,
        pixels_per_cell=(8, 8),
        cells_per_block=(1, 1),
        feature_vector=False,
    )[:, :, 0, 0]
    cells = GradientHistograms(6)(image)[0].permute(1, 2, 0).numpy()
    ours = (cells[::2, ::2] + cells[1::2, ::2] + cells[::2, 1::2] + cells[1::2, 1::2]) / 4
    theirs = np.stack([votes[..., 11 - 2 * n] + votes[..., (12 - 2 * n) % 12] for n in range(6)], axis=-1)
    agreement = np.corrcoef(ours[1:-1, 1:-1].ravel(), theirs[1:-1, 1:-1].ravel())[0, 1]
    assert agreement > 0.8, agreement


def test_edge_bank_of_a_step_is_1_at_the_edge_and_0_far_from_it() -> None:
    step = torch.zeros(1, 3, 64, 64)
    step[..., 32:] = 255
    responses = EdgeBank()(step)[0]
    assert responses.shape[0] == len(EDGE_SCALES)
    assert (responses[:, 8, 7:9] > 0.5).all()
    assert responses[:, 8, 7:9].max() <= 1
    assert not responses[0, 8, :6].any()
    assert responses[2, 8, 5] > responses[1, 8, 5], "a wider blur sees the edge from farther"
    torch.testing.assert_close(EdgeBank()(step.transpose(2, 3))[0], responses.transpose(1, 2))


@pytest.mark.parametrize("name", COLORS)
def test_color_bank_tells_the_basic_colors(name: str) -> None:
    plain = torch.tensor(COLORS[name], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    shares = ColorBank()(plain)[0, :, 0, 0]
    assert list(COLORS)[int(shares.argmax())] == name
    assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_analytic_teacher_of_each_function_predicts_labels(function: str, tmp_path: Path) -> None:
    config = {"name": "own", "teacher": {"kind": "analytic", "function": function, "image_size": 64}}
    analytic.make(config, None, tmp_path)  # type: ignore[arg-type]
    teacher = analytic.load(tmp_path)
    pixels = pictures(4)[0].permute(1, 2, 0).numpy()
    images = torch.tensor(teacher.preprocessing(Image.fromarray(pixels), (64, 64)))[None].permute(0, 3, 1, 2)
    label = TaskLabel(teacher.heads["own"].space)
    value = teacher.values(teacher.predict(images, [(64, 64)]), 0, (64, 64))["own"]
    back = label.decode(label.encode(value))["responses"]
    assert np.abs(back - value["responses"]).max() < 1 / 500


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"function": "edges", "orientations": 6}, r"orientations is 6: that is a key of gabor and hog; leave it out"),
        ({"function": "hog", "wavelengths": [5.0]}, r"wavelengths is \[5\.0\]: that is a key of gabor; leave it out"),
        ({"function": "jigsaw"}, r"'gabor', 'hog', 'edges' or 'colors'"),
    ],
)
def test_analytic_config_refuses_keys_of_another_function(keys: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        analytic.Config.model_validate(keys)
