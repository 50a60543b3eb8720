"""Normals: directions on disk, flips that negate x, cosine loss, and angles against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.stores.labels import LabelSpace, Value
from tasks.normals.label import TaskLabel
from tasks.normals.model import TaskModel

SPACE = LabelSpace("normals")
LABEL, TASK = TaskLabel(SPACE), TaskModel(SPACE)


def random_normals(seed: int, shape: tuple[int, int] = (9, 13), unknown: float = 0.2) -> Value:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(loc=(0, 0, 1.5), size=(*shape, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[rng.random(shape) < unknown] = 0
    return {"normals": vectors.astype(np.float32)}


def angles(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the angles between vectors in degrees, float64."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    across = np.linalg.norm(np.cross(one, other), axis=-1)
    return np.asarray(np.degrees(np.arctan2(across, (one * other).sum(axis=-1))))


@given(st.integers(0, 10_000))
def test_encode_keeps_directions_to_half_a_degree(seed: int) -> None:
    value = random_normals(seed)
    back = LABEL.decode(LABEL.encode(value))["normals"]
    known = value["normals"].any(axis=-1)
    assert (angles(back[known], value["normals"][known]) <= 0.5).all()
    assert not back[~known].any()


def test_flip_negates_x_and_mirrors_columns() -> None:
    value = {"normals": np.array([[[0.6, 0, 0.8], [0, 1, 0]]], np.float32)}
    np.testing.assert_array_equal(LABEL.flip(value)["normals"], np.array([[[0, 1, 0], [-0.6, 0, 0.8]]], np.float32))


def test_encode_writes_mean_z_and_unknown_share() -> None:
    row = LABEL.encode({"normals": np.array([[[0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]]], np.float32)})
    assert (row["mean_z"], row["unknown"]) == (0.5, 0.5)
    assert LABEL.encode({"normals": np.zeros((1, 2, 3), np.float32)})["mean_z"] is None


def test_angular_errors_agree_with_numpy() -> None:
    pairs = [(random_normals(seed, unknown=0), random_normals(seed + 60)) for seed in range(3)]
    metric = TASK.metrics()
    for predicted, true in pairs:
        metric.update(predicted, true)
    found = np.concatenate([angles(p["normals"], t["normals"])[t["normals"].any(axis=-1)] for p, t in pairs])
    scores = metric.compute()
    assert scores["mean_angle"] == pytest.approx(found.mean(), rel=1e-9)
    assert scores["within_11.25"] == pytest.approx((found < 11.25).mean(), rel=1e-12)
    assert scores["median_angle"] == pytest.approx(np.sort(found)[(found.size - 1) // 2], abs=0.0051)


def test_angular_errors_resolve_small_angles() -> None:
    turned = np.radians(0.02)
    truth = {"normals": np.array([[[0, 0, 1]]], np.float32)}
    guess = {"normals": np.array([[[np.sin(turned), 0, np.cos(turned)]]], np.float32)}
    metric = TASK.metrics()
    metric.update(guess, truth)
    assert metric.compute()["mean_angle"] == pytest.approx(0.02, rel=1e-3)


def test_angular_errors_count_zero_vector_as_90_degrees() -> None:
    truth = random_normals(1, unknown=0)
    metric = TASK.metrics()
    metric.update({"normals": np.zeros((1, 1, 3), np.float32)}, truth)
    assert metric.compute()["mean_angle"] == pytest.approx(90)


def test_loss_is_one_minus_cosine_over_known_pixels() -> None:
    truth = random_normals(2)
    output = torch.randn(1, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    guess = output[0].permute(1, 2, 0).numpy()
    guess = guess / np.linalg.norm(guess, axis=-1, keepdims=True)
    known = truth["normals"].any(axis=-1)
    expected = (1 - (guess * truth["normals"]).sum(axis=-1))[known].mean()
    target = TASK.collate([truth])
    assert TASK.loss(output, target).item() == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(TASK.loss(10 * output, target), TASK.loss(output, target))


def test_predict_gives_unit_vectors() -> None:
    output = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(3))
    found = TASK.predict(output)["normals"].numpy()
    assert found.shape == (1, 4, 5, 3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)


def test_constant_label_is_mean_direction() -> None:
    values = [{"normals": np.array([[[0.6, 0, 0.8], [-0.6, 0, 0.8]]], np.float32)}]
    np.testing.assert_allclose(TASK.constant_label(values)["normals"], [[[0, 0, 1]]], atol=1e-7)
