"""Classification: distributions on disk, thresholds, soft cross entropy, accuracy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tasks
from pipeline.stores.labels import COMMON, LabelSpace, Row, Value
from tasks.classification.label import TaskLabel
from tasks.classification.model import TaskModel
from tasks.network import Network
from tasks.prediction import network_predictor

SPACE = LabelSpace("classification", ("tench, Tinca tinca", "snake", "bee"))
LABEL, TASK = TaskLabel(SPACE), TaskModel(SPACE)


def probs(*numbers: float) -> Value:
    return {"probs": np.array(numbers, np.float32)}


def stored(value: Value) -> Row:
    schema = pa.schema([*COMMON, *LABEL.columns()])
    row: Row = pa.Table.from_pylist([{"key": "k", "status": "ok", **LABEL.encode(value)}], schema=schema).to_pylist()[0]
    return row


@given(st.integers(1, 3000), st.integers(0, 100), st.floats(0.1, 30))
def test_encode_keeps_probabilities_to_float16(classes: int, seed: int, spread: float) -> None:
    logits = spread * np.random.default_rng(seed).standard_normal(classes)
    given_probs = np.exp(logits - logits.max())
    given_probs /= given_probs.sum()
    label = TaskLabel(LabelSpace("classification", tuple(map(str, range(classes)))))
    back = label.decode(label.encode({"probs": given_probs.astype(np.float32)}))["probs"]
    bound = (2.0**-11 * given_probs + 2.0**-24) + given_probs * (2.0**-11 + classes * 2.0**-24)  # and the sum's own
    assert (np.abs(back - given_probs) <= bound + 1e-7).all()
    assert back.sum() == pytest.approx(1, abs=1e-5)


def test_encode_writes_top_class_confidence_and_entropy() -> None:
    row = stored(probs(0.2, 0.7, 0.1))
    assert (row["top"], row["top_class"]) == (1, "snake")
    assert row["confidence"] == pytest.approx(0.7)
    assert row["entropy"] == pytest.approx(-sum(p * np.log(p) for p in (0.2, 0.7, 0.1)))
    assert stored(probs(0, 0, 1))["entropy"] == 0


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, True), (0.699, True), (0.7, True), (0.701, False)])
def test_decode_drops_label_below_threshold(threshold: float, kept: bool) -> None:
    row = stored(probs(0.2, 0.7, 0.1))
    assert LABEL.decode(row, threshold)["probs"].any() == kept
    held, left = LABEL.count(row, threshold)
    assert (held.tolist(), left.tolist()) == ([0, 1, 0], [0, int(kept), 0])


def test_draw_leaves_image_of_dropped_label_as_it_is() -> None:
    image = Image.new("RGB", (64, 48))
    assert LABEL.draw(image, probs(0, 0, 0)).tobytes() == image.tobytes()
    assert LABEL.draw(image, probs(0, 1, 0)).tobytes() != image.tobytes()


def test_loss_is_cross_entropy_with_soft_targets() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    target = TASK.collate([probs(0.2, 0.5, 0.3), probs(0, 1, 0)])
    expected = F.cross_entropy(logits, target["probs"])
    torch.testing.assert_close(TASK.loss(logits, target), expected)


def test_loss_ignores_dropped_labels() -> None:
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    some = TASK.collate([probs(0.2, 0.5, 0.3), probs(0, 0, 0), probs(1, 0, 0)])
    torch.testing.assert_close(TASK.loss(logits, some), F.cross_entropy(logits[[0, 2]], some["probs"][[0, 2]]))


def test_accuracy_counts_images_with_a_label() -> None:
    metric = TASK.metrics()
    metric.update(probs(0.4, 0.3, 0.3), probs(1, 0, 0))
    metric.update(probs(0.4, 0.3, 0.3), probs(0, 1, 0))
    metric.update(probs(0.1, 0.2, 0.7), probs(0, 0, 0))  # no label
    metric.update(probs(0.1, 0.2, 0.7), probs(0.1, 0.2, 0.7))
    assert metric.compute() == {"accuracy": 2 / 3}
    assert metric.compute_by_class() == {index: (1, {"accuracy": hit}) for index, hit in enumerate((1, 0, 1))}


def test_constant_label_is_the_class_frequencies() -> None:
    guess = TASK.constant_label([probs(1, 0, 0), probs(0, 1, 0), probs(1, 0, 0), probs(0, 0.5, 0.5)])
    np.testing.assert_allclose(guess["probs"], [0.5, 0.375, 0.125])


def test_predictor_gives_distributions_over_classes(make_network: Callable[..., Network]) -> None:
    predictor = network_predictor(make_network({"kind": SPACE}))
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    predicted = predictor.predict(images, [(32, 32)] * 3)
    values = [predictor.values(predicted, index, (32, 32))["kind"] for index in range(3)]
    for value in values:
        assert value["probs"].shape == (3,)
        assert value["probs"].dtype == np.float32
        assert value["probs"].sum() == pytest.approx(1, abs=1e-6)
    assert tasks.model(SPACE).reads == "vector"
