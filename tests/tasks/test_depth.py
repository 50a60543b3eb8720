"""Depth: float16 on disk, crops that keep metres, losses, and errors against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.data.augment import Placement
from pipeline.stores.labels import LabelSpace, Value
from tasks.depth.label import TaskLabel, align
from tasks.depth.model import TaskModel

METRIC, RELATIVE = LabelSpace("depth"), LabelSpace("depth", scale="relative")
LABEL, TASK, INVERSE = TaskLabel(METRIC), TaskModel(METRIC), TaskModel(RELATIVE)


def depth(array: NDArray[np.floating]) -> Value:
    return {"depth": np.asarray(array, np.float32)}


def random_depth(seed: int, shape: tuple[int, int] = (9, 13), unknown: float = 0.2) -> Value:
    rng = np.random.default_rng(seed)
    metres = np.exp(rng.normal(1, 0.7, shape))
    metres[rng.random(shape) < unknown] = 0
    return depth(metres)


@given(st.lists(st.floats(2.0**-14, 65504, width=32), min_size=1, max_size=20))
def test_encode_keeps_depth_to_one_in_2048(metres: list[float]) -> None:
    value = depth(np.array([metres]))
    back = LABEL.decode(LABEL.encode(value))["depth"]
    assert (np.abs(back - value["depth"]) <= 2.0**-11 * value["depth"]).all()


def test_encode_writes_range_of_known_depths() -> None:
    row = LABEL.encode(depth(np.array([[0, 2, 8], [0, 4, 0]])))
    assert (row["near"], row["far"], row["unknown"], row["confidence"]) == (2, 8, 0.5, 1.0)
    nothing = LABEL.encode(depth(np.zeros((2, 3))))
    assert (nothing["near"], nothing["far"], nothing["unknown"], nothing["confidence"]) == (None, None, 1.0, 0.0)


def test_columns_state_the_unit() -> None:
    assert b"metres" in TaskLabel(METRIC).columns().field("depth").metadata[b"about"]
    assert b"inverse depth" in TaskLabel(RELATIVE).columns().field("depth").metadata[b"about"]


def test_crop_keeps_metres_and_flip_mirrors_them() -> None:
    value = depth(np.array([[1.0, 2.0], [3.0, 0.0]]))
    np.testing.assert_array_equal(
        LABEL.crop(value, (0.5, 0.0, 1.0, 1.0), (4, 4))["depth"], [[2] * 4] * 2 + [[0] * 4] * 2
    )
    np.testing.assert_array_equal(LABEL.flip(value)["depth"], [[2, 1], [0, 3]])


def test_decode_ignores_threshold() -> None:
    row = LABEL.encode(random_depth(0))
    np.testing.assert_array_equal(LABEL.decode(row, 0.99)["depth"], LABEL.decode(row)["depth"])


def reference_errors(pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> dict[str, float]:
    """Return the three errors over all known pixels of (guess, truth) pairs, in float64."""
    guess = np.concatenate([one[true > 0] for one, true in pairs])
    truth = np.concatenate([true[true > 0] for _, true in pairs])
    ratio = np.maximum(guess / truth, truth / guess)
    return {
        "delta_1.25": float(np.mean(ratio < 1.25)),
        "abs_rel": float(np.mean(np.abs(guess - truth) / truth)),
        "rmse": float(np.sqrt(np.mean((guess - truth) ** 2))),
    }


def test_depth_errors_agree_with_numpy() -> None:
    pairs = [(random_depth(seed, unknown=0), random_depth(seed + 30, (9, 13))) for seed in range(3)]
    metric = TASK.metrics()
    for predicted, true in pairs:
        metric.update(predicted, true)
    plain = [(one["depth"].astype(np.float64), true["depth"].astype(np.float64)) for one, true in pairs]
    assert metric.compute() == pytest.approx(reference_errors(plain), rel=1e-12)


def test_depth_errors_weigh_images_by_known_pixels() -> None:
    large, small = depth(np.full((10, 10), 2.0)), depth(np.full((1, 1), 2.0))
    metric = TASK.metrics()
    metric.update(large, large)
    metric.update(depth(np.full((1, 1), 4.0)), small)
    metric.update(large, depth(np.zeros((10, 10))))  # nothing known
    assert metric.compute()["delta_1.25"] == pytest.approx(100 / 101)
    assert metric.compute()["abs_rel"] == pytest.approx(1 / 101)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (7.0, 0.0), (0.01, 0.0), (2.0, 5.0), (3.0, -0.5)])
def test_depth_errors_of_relative_depth_ignore_scale_and_shift(scale: float, shift: float) -> None:
    truth = random_depth(3, unknown=0.1)
    metric = INVERSE.metrics()
    metric.update(depth(scale * truth["depth"] + shift), truth)
    assert metric.compute() == pytest.approx({"delta_1.25": 1.0, "abs_rel": 0.0, "rmse": 0.0}, abs=1e-5)


def test_depth_errors_align_each_image_in_least_squares() -> None:
    pairs = [(random_depth(seed, unknown=0), random_depth(seed + 40)) for seed in range(3)]
    metric, plain = INVERSE.metrics(), []
    for predicted, true in pairs:
        metric.update(predicted, true)
        known = true["depth"] > 0
        slope, offset = np.polyfit(predicted["depth"][known].astype(np.float64), true["depth"][known], 1)
        aligned = np.maximum(slope * predicted["depth"].astype(np.float64) + offset, 1e-6)
        plain.append((aligned, true["depth"].astype(np.float64)))
    assert metric.compute() == pytest.approx(reference_errors(plain), rel=1e-6)


def test_align_accepts_flat_guess_and_empty_truth() -> None:
    np.testing.assert_allclose(align(np.full(4, 3.0), np.array([1.0, 2, 3, 6]), np.ones(4, bool)), np.full(4, 3.0))
    metric = INVERSE.metrics()
    metric.update(random_depth(1), depth(np.zeros((9, 13))))
    assert metric.compute() == {}, "nothing is known"


def test_metric_loss_is_mean_log_error_over_known_pixels() -> None:
    truth = random_depth(5)
    output = torch.randn(1, 1, 9, 13, generator=torch.Generator().manual_seed(0))
    known = truth["depth"] > 0
    expected = np.abs(output[0, 0].numpy()[known] - np.log(truth["depth"][known])).mean()
    assert TASK.loss(output, TASK.collate([truth])).item() == pytest.approx(float(expected), rel=1e-5)


def test_relative_loss_ignores_scale_and_shift() -> None:
    truth, output = random_depth(6), torch.randn(1, 1, 9, 13, generator=torch.Generator().manual_seed(0))
    target = INVERSE.collate([truth])
    loss = INVERSE.loss(output, target)
    torch.testing.assert_close(INVERSE.loss(3 * output + 8, target), loss, rtol=1e-4, atol=1e-5)
    known = truth["depth"] > 0
    scaled = depth(np.where(known, 5 * truth["depth"] + 2, 0))
    torch.testing.assert_close(INVERSE.loss(output, INVERSE.collate([scaled])), loss, rtol=1e-4, atol=1e-5)
    agreeing = torch.from_numpy(truth["depth"])[None, None] * 4 - 1
    assert INVERSE.loss(agreeing, target).item() < 1e-5
    assert loss.item() > 0.1


def test_relative_loss_is_finite_for_flat_map() -> None:
    output = torch.full((1, 1, 9, 13), 2.0, requires_grad=True)
    INVERSE.loss(output, INVERSE.collate([random_depth(7)])).backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_predict_gives_depths_that_can_be_stored() -> None:
    for task in (TASK, INVERSE):
        found = task.predict(torch.tensor([-1e6, -3.0, 0.0, 3.0, 1e6]).reshape(1, 1, 1, 5))["depth"].numpy()
        back = LABEL.decode(LABEL.encode({"depth": found[0]}))["depth"]
        assert np.isfinite(back).all(), task.space.scale
        assert (back > 0).all(), task.space.scale


def test_predict_of_relative_depth_is_affine_and_increasing() -> None:
    raw = (
        torch.randn(2, 1, 6, 7, generator=torch.Generator().manual_seed(4))
        * torch.tensor([0.1, 90.0])[:, None, None, None]
    )
    found = INVERSE.predict(raw)["depth"].numpy()
    assert found.min() > 0
    for index in range(2):
        slope = np.polyfit(raw[index, 0].flatten().numpy(), found[index].ravel(), 1)
        np.testing.assert_allclose(np.polyval(slope, raw[index, 0].numpy()), found[index], atol=1e-4)
        assert slope[0] > 0


def test_constant_label_is_median_of_medians() -> None:
    values = [depth(np.array([[1.0, 2.0, 3.0, 0.0]])), depth(np.array([[8.0]])), depth(np.array([[4.0]]))]
    assert TASK.constant_label([*values, depth(np.zeros((2, 2)))])["depth"].tolist() == [[4.0]]


def test_relative_depth_is_stretched_over_the_valid_region() -> None:
    raw = torch.randn(2, 1, 4, 4)
    raw[1, :, 2:] += 50  # padding
    alone = INVERSE.predict(raw[1:, :, :2])["depth"][0]
    padded = INVERSE.predict(raw, [(16, 16), (16, 8)])["depth"]
    torch.testing.assert_close(padded[1, :2], alone)
    torch.testing.assert_close(padded[0], INVERSE.predict(raw[:1])["depth"][0])
    value = INVERSE.value({"depth": padded.numpy()}, 1, Placement((64, 32), (16, 8)))
    np.testing.assert_array_equal(value["depth"], padded[1, :2].numpy())
