"""Texture: mirrored filters, the Gabor bank, unknown cells, and R squared against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.stores.labels import LabelSpace, Value
from tasks.prediction import Predictor
from tasks.texture.filter_banks import GaborBank
from tasks.texture.label import UNKNOWN, TaskLabel, mirror
from tasks.texture.model import TaskModel
from teachers import analytic

FILTERS = ("4@0", "4@45", "4@90", "4@135", "8@0", "8@90")
SPACE = LabelSpace("texture", FILTERS)
LABEL, TASK = TaskLabel(SPACE), TaskModel(SPACE)


def random_responses(seed: int, unknown: float = 0.2) -> Value:
    rng = np.random.default_rng(seed)
    responses = rng.random((7, 9, 6))
    responses[rng.random((7, 9)) < unknown] = UNKNOWN
    return {"responses": responses.astype(np.float32)}


@given(st.integers(0, 10_000))
def test_encode_keeps_responses_to_one_in_508(seed: int) -> None:
    value = random_responses(seed)
    back = LABEL.decode(LABEL.encode(value))["responses"]
    assert np.abs(back - value["responses"]).max() <= 1 / 508 + 1e-7
    np.testing.assert_array_equal(back < 0, value["responses"] < 0)


def test_encode_writes_means_over_known_cells() -> None:
    responses = np.full((2, 2, 6), 0.5, np.float32)
    responses[0, 0] = UNKNOWN
    row = LABEL.encode({"responses": responses})
    assert row["mean"] == [0.5] * 6
    assert row["confidence"] == 1
    assert LABEL.encode({"responses": np.full((2, 2, 6), UNKNOWN, np.float32)})["mean"] == [0] * 6


def test_mirror_swaps_mirrored_filters() -> None:
    assert [FILTERS[index] for index in mirror(FILTERS)] == ["4@0", "4@135", "4@90", "4@45", "8@0", "8@90"]


@pytest.mark.parametrize("orientations", range(2, 25))
def test_mirror_is_an_involution_for_any_number_of_filters(orientations: int) -> None:
    config = analytic.Config(orientations=orientations, wavelengths=[3.0, 6.5])
    names = tuple(analytic.filter_names(config))
    swapped = mirror(names)
    assert sorted(swapped) == list(range(len(names)))
    assert [swapped[index] for index in swapped] == list(range(len(names)))
    assert all(names[index].split("@")[0] == name.split("@")[0] for index, name in zip(swapped, names, strict=True))


@pytest.fixture(scope="module")
def gabor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Return the analytic teacher with filters at four angles."""
    folder = tmp_path_factory.mktemp("gabor")
    teacher = analytic.Config(wavelengths=[4.0], image_size=64)
    analytic.make({"name": "gabor", "teacher": teacher.model_dump()}, None, folder)  # type: ignore[arg-type]
    return analytic.load(folder)


def stripes(angle: float) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Draw a wave of 4 pixels whose direction is `angle` degrees, counter-clockwise from the right."""
    y, x = np.mgrid[:64, :64]
    wave = np.cos(2 * np.pi * (x * np.cos(np.radians(angle)) - y * np.sin(np.radians(angle))) / 4)
    return np.repeat(np.rint(127.5 + 100 * wave)[..., None], 3, axis=2).astype(np.uint8)


def predict_responses(gabor: Predictor, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Value:
    images = torch.tensor(gabor.preprocessing(Image.fromarray(pixels), (64, 64)))[None].permute(0, 3, 1, 2)
    return gabor.values(gabor.predict(images, [(64, 64)]), 0, (64, 64))["gabor"]


@pytest.mark.parametrize(("angle", "filter_number"), [(0, 0), (45, 1), (90, 2), (135, 3)])
def test_gabor_bank_responds_to_stripes_of_each_angle(gabor: Predictor, angle: float, filter_number: int) -> None:
    responses = predict_responses(gabor, stripes(angle))["responses"][4:-4, 4:-4].mean(axis=(0, 1))
    assert responses.argmax() == filter_number
    assert responses[filter_number] > 1.5 * np.delete(responses, filter_number).max()


def test_flip_gives_label_of_mirrored_image(gabor: Predictor) -> None:
    pixels = np.where(np.mgrid[:64, :64][1][..., None] < 32, stripes(45), stripes(0)).astype(np.uint8)
    label = TaskLabel(gabor.heads["gabor"].space)
    mirrored = label.flip(predict_responses(gabor, pixels))["responses"]
    of_mirrored = predict_responses(gabor, np.ascontiguousarray(pixels[:, ::-1]))["responses"]
    np.testing.assert_allclose(mirrored[4:-4, 4:-4], of_mirrored[4:-4, 4:-4], atol=0.02)
    assert np.abs(of_mirrored[..., 1] - of_mirrored[..., 3]).max() > 0.2


def test_explained_variance_agrees_with_numpy() -> None:
    pairs = [(random_responses(seed, 0), random_responses(seed + 9)) for seed in range(3)]
    metric = TASK.metrics()
    for predicted, true in pairs:
        metric.update(predicted, true)
    guess = np.concatenate([one["responses"].reshape(-1, 6) for one, _ in pairs]).astype(np.float64)
    truth = np.concatenate([one["responses"].reshape(-1, 6) for _, one in pairs]).astype(np.float64)
    guess, truth = guess[truth[:, 0] >= 0], truth[truth[:, 0] >= 0]
    scores = 1 - ((guess - truth) ** 2).sum(axis=0) / ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    assert metric.compute()["r2"] == pytest.approx(scores.mean(), rel=1e-9)


def test_constant_label_explains_no_variance() -> None:
    values = [random_responses(seed) for seed in range(3)]
    guess = TASK.constant_label(iter(values))
    assert guess["responses"].shape == (1, 1, 6)
    metric = TASK.metrics()
    for value in values:
        metric.update(guess, value)
    assert metric.compute()["r2"] == pytest.approx(0, abs=1e-6)


def test_loss_is_mean_absolute_error_over_known_cells() -> None:
    truth = random_responses(4)
    output = torch.randn(1, 6, 7, 9, generator=torch.Generator().manual_seed(0))
    guess = 1 / (1 + np.exp(-output[0].permute(1, 2, 0).numpy()))
    known = truth["responses"] >= 0
    expected = np.abs(guess - truth["responses"])[known].mean()
    assert TASK.loss(output, TASK.collate([truth])).item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("wavelengths", [[-3.0], [0.0], [2.0], [500.0], [1e9, -3.0], [4.0, 4.0]])
def test_analytic_config_refuses_wavelengths_that_no_filter_has(wavelengths: list[float]) -> None:
    with pytest.raises(ValidationError, match="wavelengths: "):
        analytic.Config(wavelengths=wavelengths)


def test_analytic_config_refuses_a_wavelength_that_is_no_number() -> None:
    with pytest.raises(ValidationError, match=r"wavelengths\.0\n  Input should be a finite number"):
        analytic.Config(wavelengths=[float("nan")])


@pytest.mark.parametrize("size", [32, 128])
def test_analytic_config_takes_wavelengths_that_gabor_bank_can_filter(size: int) -> None:
    longest = float(int((size - 1) / analytic.RADIUS))
    analytic.Config(wavelengths=[2.5, longest], image_size=size)
    responses = GaborBank([2.5, longest], 2)(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert responses.isfinite().all()
