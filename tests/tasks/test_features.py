"""Features: their storage, and the loss against matrices written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from pipeline.stores.labels import LabelSpace, Value
from tasks.features.label import TaskLabel
from tasks.features.model import TaskModel
from tasks.task import FeatureInfo, Features

SPACE = LabelSpace("features", tuple("123456"))
LABEL, TASK = TaskLabel(SPACE), TaskModel(SPACE)


def value(*components: float) -> Value:
    return {"vector": np.array(components, np.float32)}


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6))
def test_encode_keeps_features_to_one_in_2048(components: list[float]) -> None:
    vector = np.array(components, np.float32)
    back = LABEL.decode(LABEL.encode({"vector": vector}))["vector"]
    assert (np.abs(back - vector) <= 2**-11 * np.abs(vector) + 2**-24).all()


def test_encode_clips_features_that_float16_does_not_hold() -> None:
    back = LABEL.decode(LABEL.encode(value(1e30, -1e30, 0, 0, 0, 1)))["vector"]
    np.testing.assert_array_equal(back, [65504, -65504, 0, 0, 0, 1])


def test_encode_writes_the_first_components_and_the_length() -> None:
    row = LABEL.encode(value(3, 4, 0, 0, 0, 0))
    assert (row["first"], row["length"], row["confidence"]) == ([3, 4, 0], pytest.approx((25 / 6) ** 0.5), 1)


def test_distance_is_that_of_the_angle() -> None:
    one, other, none = value(1, 0, 0, 0, 0, 0), value(0, 5, 0, 0, 0, 0), value(0, 0, 0, 0, 0, 0)
    assert LABEL.distance(one, value(7, 0, 0, 0, 0, 0)) == 0
    assert LABEL.distance(one, other) == 0.5
    assert LABEL.distance(one, value(-1, 0, 0, 0, 0, 0)) == 1
    assert LABEL.distance(one, none) == 1
    assert LABEL.distance(none, none) == 0


def test_loss_is_the_angle_and_the_smooth_l1_distance_of_known_images() -> None:
    rng = torch.Generator().manual_seed(0)
    output, truth = torch.randn(4, 6, generator=rng), 3 * torch.randn(4, 6, generator=rng)
    truth[2] = 0
    matrix = torch.from_numpy(hadamard(8)[:6] / 6**0.5).float()
    losses = [
        (1 - F.cosine_similarity(o, t, dim=0) + F.smooth_l1_loss(o @ matrix, t @ matrix)) / 2
        for o, t in zip(output, truth, strict=True)
        if t.any()
    ]
    found = TASK.loss(output, TASK.collate([{"vector": row.numpy()} for row in truth]))
    assert float(found) == pytest.approx(float(sum(losses) / 3), rel=1e-5)


def test_loss_and_its_gradient_are_0_where_the_student_says_what_the_teacher_says() -> None:
    truth = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    output = truth.clone().requires_grad_()
    loss = TASK.loss(output, {"vector": truth})
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert output.grad is not None
    np.testing.assert_allclose(output.grad.numpy(), np.zeros((4, 6)), atol=1e-6)


def test_metrics_are_the_mean_cosine_and_the_explained_variance() -> None:
    metric = TASK.metrics()
    metric.update(value(2, 0, 0, 0, 0, 0), value(1, 0, 0, 0, 0, 0))
    metric.update(value(0, 0, 0, 0, 0, 0), value(0, 3, 0, 0, 0, 0))
    metric.update(value(9, 0, 0, 0, 0, 0), value(0, 0, 0, 0, 0, 0))  # unknown
    assert metric.compute() == {"cosine": 0.5, "r2": 1 - (1 + 9) / (1 + 9)}


def test_head_learns_features_from_the_vector() -> None:
    torch.manual_seed(0)
    head, rng = TASK.head(FeatureInfo(16, 8, 64)), torch.Generator().manual_seed(1)
    vectors = torch.randn(64, 16, generator=rng)
    target = {"vector": vectors @ torch.randn(16, 6, generator=rng) / 4}
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        loss = TASK.loss(head(Features(vectors)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
