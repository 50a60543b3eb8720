"""Contracts that the `TaskModel` of every task keeps: losses, metrics, predictions."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tasks
from pipeline.data.augment import Placement
from pipeline.data.loader import WEIGHTS, Batch
from pipeline.stores.labels import LabelSpace, Value
from pipeline.training.device import move_to_device
from tasks.network import Network, NetworkConfig
from tasks.prediction import to_numpy
from tasks.task import Task
from tasks.training import SupervisedObjective, WeightedSum
from tests.spaces import (
    NEVER_UNKNOWN,
    SIDE,
    SPACES,
    WHOLE,
    assert_same_value,
    every_space,
    features,
    head_of,
    name_of,
    stored_row,
    unknown_value,
    value_of,
)
from tests.waiting_for_device import no_values

DRAWS_SAMPLES = {"detection", "masks", "keypoints"}
"""Tasks whose losses draw anchors and proposals: torchvision looks at values for that, several times an image."""


def target_of(task: Task, values: list[Value]) -> Any:
    """Return targets as the loader makes them: rasters at the heads' size, boxes in pixels of the input."""
    label = tasks.label(task.space)
    side = label.target_side(SIDE)
    return task.collate([label.crop(value, WHOLE, (side, side)) for value in values])


def tiny_network(space: LabelSpace, backbone: str) -> Network:
    about = {"backbone": backbone, "image_size": SIDE, "width": 16, "proposals": 16, "heads": {"head": space.to_json()}}
    return Network(NetworkConfig.model_validate(about)).train()


@every_space
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_task_loss_is_finite_and_falls_on_one_batch(space: LabelSpace, backbone: str) -> None:
    network = tiny_network(space, backbone)
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    target = target_of(network.tasks["head"], [value_of(space, seed) for seed in range(4)])
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = network.losses(images, {"head": {"rows": torch.arange(4), "target": target}})["head"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all(), losses
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:2]), losses


@every_space
@pytest.mark.parametrize("pieces", [[1, 3], [2, 2], [1, 1, 1, 1]], ids=str)
def test_task_amount_weighs_parts_of_a_batch(space: LabelSpace, pieces: list[int]) -> None:
    """The images know different amounts. Where samples are drawn, it agrees only roughly."""
    network = tiny_network(space, "test_convnext").eval()  # its norms look at one image
    task, label = network.tasks["head"], tasks.label(space)
    values = [value_of(space, seed) for seed in range(4)]
    values[1] = label.crop(values[1], (0.5, 0.5, 1.5, 1.5), (SIDE, SIDE))
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    if space.task in DRAWS_SAMPLES:
        network.heads.train()

    def loss(run: slice) -> tuple[float, float]:
        target = target_of(task, values[run])
        rows = torch.arange(len(values[run]))
        with torch.no_grad():
            mean = network.losses(images[run], {"head": {"rows": rows, "target": target}})["head"]
        return float(mean), float(task.known(target).sum())

    whole, amount = loss(slice(0, 4))
    ends = np.cumsum(pieces).tolist()
    found = [loss(slice(end - size, end)) for size, end in zip(pieces, ends, strict=True)]
    assert sum(share for _, share in found) == amount > 0
    tolerance = 0.3 if space.task in DRAWS_SAMPLES else 1e-4
    assert sum(mean * share / amount for mean, share in found) == pytest.approx(whole, rel=tolerance)


@every_space
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_task_loss_does_not_wait_for_the_device(space: LabelSpace, backbone: str) -> None:
    network = tiny_network(space, backbone)
    target = target_of(network.tasks["head"], [value_of(space, seed) for seed in range(4)])
    images = torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8)
    batch = Batch(images, list("abcd"), {"head": {"rows": torch.arange(4), "target": target}})
    objective = SupervisedObjective(network, WeightedSum({"head": 1.0}), torch.channels_last)
    shares = dict.fromkeys(objective.amounts(batch), 1.0)
    waits = pytest.raises(NotImplementedError) if space.task in DRAWS_SAMPLES else contextlib.nullcontext()
    with no_values() as device, waits:
        total, _ = objective.to(device)(move_to_device(batch, device), shares)
        total.backward()


def output_of(space: LabelSpace, count: int) -> tuple[Task, Tensor]:
    """Return the raw output for random features, as a leaf that receives gradients."""
    task, head = head_of(space)
    with torch.no_grad():
        output: Tensor = head(features(9, count=count, loud=1.0))
    return task, output.clone().requires_grad_()


CAN_BE_UNKNOWN = [space for space in SPACES if space.task not in NEVER_UNKNOWN]
DENSE = [space for space in CAN_BE_UNKNOWN if output_of(space, 1)[1].ndim == 4]
can_be_unknown = pytest.mark.parametrize("space", CAN_BE_UNKNOWN, ids=name_of)
dense = pytest.mark.parametrize("space", DENSE, ids=name_of)


@can_be_unknown
def test_task_loss_is_0_without_gradient_where_nothing_is_known(space: LabelSpace) -> None:
    task, output = output_of(space, 2)
    empty = unknown_value(tasks.label(space), value_of(space, 5))
    loss = task.loss(output, target_of(task, [empty, empty]))
    loss.backward()
    assert loss.item() == 0
    assert output.grad is not None
    assert not output.grad.any()


@can_be_unknown
def test_task_loss_ignores_image_without_label(space: LabelSpace) -> None:
    task, both = output_of(space, 2)
    value = value_of(space, 6)
    alone = both.detach()[:1].clone().requires_grad_()
    empty = unknown_value(tasks.label(space), value)
    one, two = task.loss(alone, target_of(task, [value])), task.loss(both, target_of(task, [value, empty]))
    one.backward()
    two.backward()
    assert alone.grad is not None
    assert both.grad is not None
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(both.grad[:1], alone.grad)
    assert not both.grad[1].any()
    assert alone.grad.any()


CLASSES = [space for space in SPACES if space.task in ("classification", "segmentation")]


@pytest.mark.parametrize("space", CLASSES, ids=name_of)
def test_task_loss_smooths_labels(space: LabelSpace) -> None:
    """The loss is linear in the label: so it is a part of the label's own and a part of every class's."""
    task, output = output_of(space, 2)
    target = target_of(task, [value_of(space, seed) for seed in (3, 4)])
    plain = task.loss(output, target)
    task.label_smoothing = 0.1
    even = -output.log_softmax(dim=1).mean()
    torch.testing.assert_close(task.loss(output, target), 0.9 * plain + 0.1 * even)


@dense
def test_task_loss_ignores_unknown_pixels(space: LabelSpace) -> None:
    task, output = output_of(space, 1)
    side = output.shape[-1]
    half = side // 2
    shifted = tasks.label(space).crop(value_of(space, 7), (-0.5, 0.0, 0.5, 1.0), (side, side))  # left half: unknown
    target = task.collate([shifted])
    elsewhere = output.detach().clone()
    elsewhere[..., :half] = 5 * torch.randn(elsewhere[..., :half].shape, generator=torch.Generator().manual_seed(2))
    elsewhere.requires_grad_()
    one, other = task.loss(output, target), task.loss(elsewhere, target)
    one.backward()
    other.backward()
    assert output.grad is not None
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(output.grad, elsewhere.grad)
    assert not output.grad[..., :half].any()
    assert output.grad[..., half:].any()


@every_space
def test_metric_computes_all_names_of_better(space: LabelSpace) -> None:
    task, _ = head_of(space)
    metric = task.metrics()
    for seed in range(4):
        metric.update(value_of(space, seed), value_of(space, seed + 10))
    assert set(metric.compute()) == set(task.better)
    assert all(math.isfinite(value) for value in metric.compute().values())


@every_space
def test_metric_computes_nothing_of_labels_that_tell_nothing(space: LabelSpace) -> None:
    """0 would be a number: the worst of accuracies, and the best of errors."""
    task, _ = head_of(space)
    metric = task.metrics()
    assert metric.compute() == {}
    metric.update(value_of(space, 1), unknown_value(tasks.label(space), value_of(space, 2)))
    assert metric.compute() == {}


@every_space
def test_metric_of_perfect_prediction_is_perfect(space: LabelSpace) -> None:
    task, _ = head_of(space)
    perfect, other = task.metrics(), task.metrics()
    for seed in range(4):
        value = value_of(space, seed)
        perfect.update(value, value)
        other.update(value_of(space, 10 + seed), value)
    for name, score in perfect.compute().items():
        higher = task.better[name] == "higher"
        assert score == pytest.approx(1.0 if higher else 0.0, abs=0.006), name
        worse = other.compute()[name]
        assert (worse < score) if higher else (worse > score), name


@every_space
def test_metric_does_not_depend_on_order(space: LabelSpace) -> None:
    task, _ = head_of(space)
    pairs = [(value_of(space, seed), value_of(space, seed + 20)) for seed in range(5)]
    pairs[2] = (pairs[2][0], pairs[2][0])
    forward, backward = task.metrics(), task.metrics()
    for predicted, true in pairs:
        forward.update(predicted, true)
    for predicted, true in reversed(pairs):
        backward.update(predicted, true)
    assert forward.compute() == pytest.approx(backward.compute(), rel=1e-9)
    assert forward.compute() == forward.compute(), "asking twice changes the answer"


@every_space
def test_supervised_objective_takes_labels_that_tell_nothing_for_absent_ones(space: LabelSpace) -> None:
    """Of 4 images 2 have a known label: the loss is half of the mean over these, whether the others have a label."""
    if space.task in NEVER_UNKNOWN:
        pytest.skip("its labels are never unknown")
    network, label = tiny_network(space, "test_convnext").eval(), tasks.label(space)
    objective = SupervisedObjective(network, WeightedSum({"head": 1.0}), torch.contiguous_format)
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    values = [value_of(space, 0), value_of(space, 1)]
    empty = [unknown_value(label, value_of(space, seed)) for seed in (2, 3)]

    def loss(labels: list[Value]) -> float:
        entry = {"rows": torch.arange(len(labels)), "target": target_of(network.tasks["head"], labels)}
        batch = Batch(images, list("abcd"), {"head": entry})
        return float(objective(batch, dict.fromkeys(objective.amounts(batch), 1.0))[0].detach())

    alone = network.losses(
        images[:2], {"head": {"rows": torch.arange(2), "target": target_of(network.tasks["head"], values)}}
    )
    assert loss([*values, *empty]) == pytest.approx(loss(values)) == pytest.approx(float(alone["head"]) / 2)


@every_space
def test_metric_by_class_is_what_metrics_are_means_of(space: LabelSpace) -> None:
    task, _ = head_of(space)
    metric = task.metrics()
    assert metric.compute_by_class() == {}
    for seed in range(4):
        metric.update(value_of(space, seed), value_of(space, seed + 10))
    by_class = metric.compute_by_class()
    assert set(by_class) <= set(range(len(space.classes)))
    for name, whole in metric.compute().items():
        scores = [score for score in by_class.values() if name in score.values]
        if scores:
            values = np.array([score.values[name] for score in scores])
            plain = values.mean()
            by_support = np.average(values, weights=[score.support for score in scores])
            assert whole in (pytest.approx(plain), pytest.approx(by_support)), name


PLACEMENT = Placement((50, 40), (SIDE, SIDE))


@every_space
@torch.no_grad()
def test_task_predict_does_not_depend_on_batch(space: LabelSpace) -> None:
    task, head = head_of(space)
    batch = features(11, count=3)
    together = to_numpy(task.predict(head(batch)))
    for index in range(3):
        alone = to_numpy(task.predict(head(batch.select(torch.tensor([index])))))
        assert_same_value(task.value(alone, 0, PLACEMENT), task.value(together, index, PLACEMENT), share=1e-3)


@every_space
def test_task_constant_label_is_a_label(space: LabelSpace) -> None:
    task, _ = head_of(space)
    label = tasks.label(space)
    values = [value_of(space, seed) for seed in range(3)]
    guess = task.constant_label(iter(values))
    assert_same_value(label.decode(stored_row(label, guess)), guess, share=0.01)
    metric = task.metrics()
    for value in values:
        metric.update(guess, value)
    assert all(math.isfinite(score) for score in metric.compute().values())


@pytest.mark.parametrize("space", [space for space in SPACES if tasks.label(space).can_be_weighted], ids=name_of)
def test_task_loss_weights_images(space: LabelSpace) -> None:
    """The loss of two images is sum(w n L) / sum(w n), of n known labels each."""
    task, output = output_of(space, 2)
    values = [value_of(space, seed) for seed in (3, 4)]
    both = target_of(task, values)
    alone = [task.loss(output[n : n + 1], target_of(task, [value])).item() for n, value in enumerate(values)]
    known = [float(part.sum()) for part in task.known(both)]
    for weights in ([1.0, 1.0], [1.0, 0.0], [0.25, 0.5], [0.0, 1e-3]):
        found = task.loss(output, {**both, WEIGHTS: torch.tensor(weights)}).item()
        shares = np.array(weights) * known
        assert found == pytest.approx(np.average(alone, weights=shares), rel=1e-4)
    assert task.loss(output, {**both, WEIGHTS: torch.zeros(2)}).item() == 0
    assert task.loss(output, {**both, WEIGHTS: torch.ones(2)}).item() == pytest.approx(task.loss(output, both).item())
