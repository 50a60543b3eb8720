"""Multi-label classification: probabilities on disk, unknown classes, binary cross entropy, mAP and AUROC."""

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
from sklearn.metrics import average_precision_score, roc_auc_score

import tasks
from pipeline.stores.labels import COMMON, LabelSpace, Row, Value
from tasks.multilabel.label import TaskLabel
from tasks.multilabel.model import TaskModel
from tasks.network import Network
from tasks.prediction import network_predictor

SPACE = LabelSpace("multilabel", ("Edema", "Fracture", "Pneumonia"))
LABEL, TASK = TaskLabel(SPACE), TaskModel(SPACE)
UNKNOWN = float("nan")


def probs(*numbers: float) -> Value:
    return {"probs": np.array(numbers, np.float32)}


def stored(value: Value) -> Row:
    schema = pa.schema([*COMMON, *LABEL.columns()])
    row: Row = pa.Table.from_pylist([{"key": "k", "status": "ok", **LABEL.encode(value)}], schema=schema).to_pylist()[0]
    return row


@given(st.integers(1, 500), st.integers(0, 100))
def test_encode_keeps_probabilities_to_float16_and_unknown_classes(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    value = rng.random(classes) ** 4
    value[rng.random(classes) < 0.2] = UNKNOWN
    label = TaskLabel(LabelSpace("multilabel", tuple(map(str, range(classes)))))
    back = label.decode(label.encode({"probs": value.astype(np.float32)}))["probs"]
    np.testing.assert_array_equal(np.isnan(back), np.isnan(value))
    known = ~np.isnan(value)
    assert (np.abs(back - value)[known] <= 2.0**-11 * value[known] + 2.0**-24 + 1e-7).all()


def test_encode_writes_scalars_for_sql() -> None:
    row = stored(probs(0.75, UNKNOWN, 0.25))
    assert (row["classes"], row["names"], row["scores"], row["count"]) == ([0], ["Edema"], [0.75], 1)
    assert row["confidence"] == pytest.approx(0.75)
    assert row["unknown"] == pytest.approx(1 / 3)
    assert stored(probs(1, 0, 0))["confidence"] == 1
    assert stored(probs(0.5, 0.49, 0))["count"] == 1, "a probability of 0.5 is a class in the image"
    nothing = stored(probs(UNKNOWN, UNKNOWN, UNKNOWN))
    assert (nothing["confidence"], nothing["unknown"], nothing["count"]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("threshold", "known"),
    [
        (0.0, [True] * 3),
        (0.5, [True] * 3),
        (0.7, [True, True, False]),
        (0.9, [True, True, False]),
        (0.91, [False] * 3),
    ],
)
def test_decode_drops_unsure_classes_both_ways(threshold: float, known: list[bool]) -> None:
    """0.9 and 0.1 are as sure as each other."""
    found = LABEL.decode(stored(probs(0.9, 0.1, 0.5)), threshold)["probs"]
    assert (~np.isnan(found)).tolist() == known


def test_count_counts_classes_found_and_those_that_a_threshold_keeps() -> None:
    held, kept = LABEL.count(stored(probs(0.9, 0.05, 0.6)), 0.9)
    assert (held.tolist(), kept.tolist()) == ([1, 0, 1], [1, 0, 0])


def test_describe_names_the_most_probable_classes() -> None:
    assert LABEL.describe(probs(0.6, 0.1, 0.9)) == "Pneumonia 90%, Edema 60%"
    assert LABEL.describe(probs(0.1, UNKNOWN, 0.2)) == "none of the classes (1 of 3 unknown)"
    assert LABEL.describe(probs(UNKNOWN, UNKNOWN, UNKNOWN)) == "all classes unknown"
    many = tasks.label(LabelSpace("multilabel", tuple("abcdefgh")))
    assert many.describe(probs(*[1] * 8)).endswith("e 100%, 3 more")


def test_draw_leaves_image_of_unknown_label_as_it_is() -> None:
    image = Image.new("RGB", (64, 48))
    assert LABEL.draw(image, probs(UNKNOWN, UNKNOWN, UNKNOWN)).tobytes() == image.tobytes()
    assert LABEL.draw(image, probs(0, 0, UNKNOWN)).tobytes() != image.tobytes()


def test_distance_of_true_labels_is_that_of_jaccard() -> None:
    assert LABEL.distance(probs(1, 1, 0), probs(1, 0, 0)) == 0.5
    assert LABEL.distance(probs(1, 0, 0), probs(0, 1, 0)) == 1
    assert LABEL.distance(probs(0, 0, 0), probs(0, 0, 0)) == 0
    assert LABEL.distance(probs(1, UNKNOWN, 0), probs(1, 0, UNKNOWN)) == 0, "what both know"
    assert LABEL.distance(probs(1, UNKNOWN, UNKNOWN), probs(UNKNOWN, 0, 0)) == 0
    assert LABEL.distance(probs(1, UNKNOWN, UNKNOWN), probs(UNKNOWN, UNKNOWN, UNKNOWN)) == 1


def logits() -> torch.Tensor:
    return torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 40.0]], requires_grad=True)


def test_loss_is_binary_cross_entropy_with_soft_targets() -> None:
    target = TASK.collate([probs(0.2, 0.5, 0.3), probs(0, 1, 0)])
    expected = F.binary_cross_entropy_with_logits(logits(), target["probs"])
    torch.testing.assert_close(TASK.loss(logits(), target), expected)
    assert TASK.known(target).sum() == 6


def test_loss_ignores_unknown_entries() -> None:
    target = TASK.collate([probs(UNKNOWN, 0.5, 1), probs(0, UNKNOWN, UNKNOWN)])
    output = logits()
    loss = TASK.loss(output, target)
    loss.backward()
    known = torch.tensor([[False, True, True], [True, False, False]])
    wanted = F.binary_cross_entropy_with_logits(output[known], target["probs"][known])
    torch.testing.assert_close(loss, wanted)
    assert TASK.known(target).sum() == 3
    assert output.grad is not None
    assert torch.equal(output.grad != 0, known)


def test_loss_smooths_each_class_towards_a_half() -> None:
    task = TaskModel(SPACE)
    target = task.collate([probs(1, 0, UNKNOWN), probs(0, 1, 1)])
    plain = task.loss(logits(), target)
    task.label_smoothing = 0.2
    even = task.loss(logits(), {"probs": torch.where(target["probs"].isnan(), target["probs"], 0.5)})
    torch.testing.assert_close(task.loss(logits(), target), 0.8 * plain + 0.2 * even)


def test_ranking_scores_are_means_over_classes_of_their_known_images() -> None:
    rng = np.random.default_rng(3)
    predicted, true = rng.random((40, 3)).round(1).astype(np.float32), (rng.random((40, 3)) < 0.3).astype(np.float32)
    true[:, 2] = 0  # no positive: the class can't be scored
    true[:7, 1] = UNKNOWN
    metric = TASK.metrics()
    for one, other in zip(predicted, true, strict=True):
        metric.update({"probs": one}, {"probs": other})
    known = [(true[:, 0], predicted[:, 0]), (true[7:, 1], predicted[7:, 1])]
    assert metric.compute() == pytest.approx(
        {
            "map": np.mean([average_precision_score(truth, score) for truth, score in known]),
            "auroc": np.mean([roc_auc_score(truth, score) for truth, score in known]),
        }
    )
    by_class = metric.compute_by_class()
    assert {index: score.support for index, score in by_class.items()} == {
        index: truth.sum() for index, (truth, _) in enumerate(known)
    }
    assert by_class[1].values["auroc"] == pytest.approx(roc_auc_score(*known[1]))


def test_ranking_scores_take_soft_truths_of_a_half_as_positive_and_survive_having_none() -> None:
    metric = TASK.metrics()
    metric.update(probs(0.9, 0.2, 0.1), probs(0.5, UNKNOWN, 0))
    assert metric.compute() == {}, "no class has a positive and a negative image"
    metric.update(probs(0.1, 0.2, 0.1), probs(0.49, UNKNOWN, 0))
    assert metric.compute() == {"map": 1, "auroc": 1}


def test_constant_label_is_the_class_frequencies_where_known() -> None:
    guess = TASK.constant_label([probs(1, 0, UNKNOWN), probs(0, UNKNOWN, UNKNOWN), probs(1, 0.5, UNKNOWN)])
    np.testing.assert_allclose(guess["probs"], [2 / 3, 0.25, 0])


def test_predictor_gives_a_probability_for_each_class(make_network: Callable[..., Network]) -> None:
    predictor = network_predictor(make_network({"kind": SPACE}))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    value = predictor.values(predictor.predict(images, [(32, 32)] * 2), 1, (32, 32))["kind"]
    assert value["probs"].shape == (3,)
    assert value["probs"].dtype == np.float32
    assert ((value["probs"] > 0) & (value["probs"] < 1)).all()
    assert tasks.model(SPACE).reads == "vector"
