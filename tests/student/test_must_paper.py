"""MuST (Ghiasi et al., ICCV 2021): what the paper says of weights, thresholds, targets and sampling.

Numbered by the ten behaviours that an implementation can be checked by; 7 to 10 are in test_must_paper_network.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import tasks
from pipeline.data.dataset import DatasetShard, ImageDataset, LabelSource
from pipeline.data.loader import collate_samples
from pipeline.errors import ConfigError
from pipeline.recipe.base import FitConfig
from pipeline.recipe.student import StudentConfig
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import LabelSpace, Value
from student.dataset import StudentHead, heads_of, student_dataset, threshold_for
from student.loss_weights import build_loss_weighting, final_weights, task_weight
from tasks.network import Network
from tasks.training import TrainingPlan, WeightedSum, train_network
from tests.augment import NO_AUGMENTATION

if TYPE_CHECKING:
    from tests.conftest import World

MakeNetwork = Callable[..., Network]
MakeDatasetShard = Callable[..., DatasetShard]
Noise = Callable[..., NDArray[np.uint8]]
POSITIVE = st.floats(1e-4, 1e4)
KINDS = LabelSpace("classification", ("a", "b", "c"))
BOXES = LabelSpace("detection", ("a", "b"))
MASKS = LabelSpace("segmentation", ("a", "b", "c", "d"))
DEPTH = LabelSpace("depth")


# 1. The weight of a task's loss


def test_1_task_weight_is_the_ratio_of_steps_per_example() -> None:
    assert task_weight(4096, 1.6, 256, 0.32) == pytest.approx(3.2)
    assert task_weight(256, 0.1, 256, 0.1) == 1


@given(POSITIVE, POSITIVE, POSITIVE, POSITIVE, st.floats(0.01, 100))
def test_1_task_weight_keeps_the_step_per_example_and_ignores_common_scale(
    batch: float, lr: float, teacher_batch: float, teacher_lr: float, k: float
) -> None:
    weight = task_weight(batch, lr, teacher_batch, teacher_lr)
    assert weight * lr / batch == pytest.approx(teacher_lr / teacher_batch)
    assert task_weight(batch, lr, k * teacher_batch, k * teacher_lr) == pytest.approx(weight)
    assert task_weight(k * batch, k * lr, teacher_batch, teacher_lr) == pytest.approx(weight)
    assert task_weight(batch, lr, batch, lr) == pytest.approx(1)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("place", range(4))
def test_1_task_weight_refuses_non_positive_values_by_name(place: int, wrong: float) -> None:
    numbers = [32.0, 0.1, 32.0, 0.1]
    numbers[place] = wrong
    name = ("student batch", "student lr", "teacher batch", "teacher lr")[place]
    with pytest.raises(ConfigError, match=f"{name} is {wrong}"):
        task_weight(*numbers)


def test_1_build_loss_weighting_needs_weight_of_teacher_without_schedule() -> None:
    """As depth's in the paper, whose teacher was not trained by the authors."""
    head = StudentHead("depth", DEPTH, None, None, 0.0)
    with pytest.raises(ConfigError, match=r"'depth' has no training schedule.*student\.loss_weights\.depth"):
        build_loss_weighting(StudentConfig(), {"depth": head})
    assert final_weights(build_loss_weighting(StudentConfig(loss_weights={"depth": 0.7}), {"depth": head})) == {
        "depth": 0.7
    }


def test_1_build_loss_weighting_uses_schedules_of_the_recipe(world: World) -> None:
    config = StudentConfig(batch=8, lr=0.004, loss_weights={"gabor": 1})
    weights = final_weights(build_loss_weighting(config, heads_of(config, world.inputs("student"))))
    usual = task_weight(8, 0.004, 4, 0.001)
    assert weights == {"kinds": usual, "masks": usual, "boxes": usual, "depth": 2 * usual, "gabor": 1}


# 2. What the weight is for: one example moves student and teacher alike


@pytest.fixture
def one_image(make_dataset_shard: MakeDatasetShard, noise: Noise) -> ImageDataset:
    """A dataset of one labelled image, of which every batch has copies."""
    labels = {"kinds": (tasks.label(KINDS), [{"probs": np.array([0, 1, 0], np.float32)}])}
    return ImageDataset([make_dataset_shard("s0", [noise(1, 64, 64)], labels)])


Step = Callable[[str, int, float, float], Tensor]


@pytest.fixture
def step(make_network: MakeNetwork, one_image: ImageDataset, tmp_path: Path, runtime: Runtime) -> Step:
    """Takes one step of plain SGD: (backbone, batch, lr, weight) -> how far one example moved each parameter."""

    def take(backbone: str, batch: int, lr: float, weight: float) -> Tensor:
        plain = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "warmup": 0, "clip": None, "steps": 1}
        fit = FitConfig.model_validate({**plain, "batch": batch, "lr": lr})
        network = make_network({"kinds": KINDS}, backbone=backbone, image_size=64)
        before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
        plan = TrainingPlan("t", fit, NO_AUGMENTATION, 0, tmp_path / f"{batch}-{weight}")
        train_network(network, WeightedSum({"kinds": weight}), one_image, plan, runtime)
        return (torch.cat([p.detach().flatten() for p in network.parameters()]) - before) / batch

    return take


def test_2_task_weight_moves_student_as_far_where_few_are_labelled(
    make_dataset_shard: MakeDatasetShard, noise: Noise, make_network: MakeNetwork, tmp_path: Path, runtime: Runtime
) -> None:
    """n labelled images of a batch of b, in microbatches; a network that does not compare the images of a batch."""
    label, value = tasks.label(KINDS), {"probs": np.array([0, 1, 0], np.float32)}
    plain = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "warmup": 0, "clip": None, "steps": 1}

    def moved(labelled: int, batch: int, lr: float, weight: float, passes: int = 1) -> Tensor:
        """Return how far each of `labelled` images with a label for "kinds" moved the backbone and the head."""
        shards = [
            make_dataset_shard(f"a{n}-{batch}-{passes}", [noise(1, 64, 64)], {"kinds": (label, [value])})
            for n in range(labelled)
        ]
        others = range(labelled, batch)
        shards += [
            make_dataset_shard(f"b{n}-{batch}-{passes}", [noise(n, 64, 64)], {"other": (label, [value])})
            for n in others
        ]
        network = make_network({"kinds": KINDS, "other": KINDS}, backbone="test_vit", image_size=64)
        parts = [*network.backbone.parameters(), *network.heads["kinds"].parameters()]
        before = torch.cat([p.detach().flatten().clone() for p in parts])
        fit = FitConfig.model_validate({**plain, "batch": batch, "lr": lr, "accumulate": passes})
        plan = TrainingPlan("t", fit, NO_AUGMENTATION, 0, tmp_path / f"{labelled}-{batch}-{passes}")
        combine = WeightedSum({"kinds": weight, "other": 0.0})
        train_network(network, combine, ImageDataset(shards), plan, runtime)
        return (torch.cat([p.detach().flatten() for p in parts]) - before) / labelled

    teacher = moved(2, 2, 0.05, 1.0)
    assert teacher.abs().max() > 1e-4
    for labelled, passes in ((8, 1), (3, 1), (1, 1), (3, 4)):
        student = moved(labelled, 8, 0.1, task_weight(8, 0.1, 2, 0.05), passes)
        torch.testing.assert_close(student, teacher, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_2_task_weight_moves_student_as_far_as_teacher_per_example(backbone: str, step: Step) -> None:
    teacher = step(backbone, 2, 0.05, 1.0)
    student = step(backbone, 8, 0.1, task_weight(8, 0.1, 2, 0.05))
    assert teacher.abs().max() > 1e-4
    torch.testing.assert_close(student, teacher, atol=1e-6, rtol=1e-3)
    unweighted = step(backbone, 8, 0.1, 1.0)
    assert (unweighted - teacher).abs().max() > 1e-4


# 3. Thresholds: hard labels keep what scores at least 0.5


def boxes_of(scores: list[float]) -> Value:
    corners = np.array([[8 * n, 4, 8 * n + 8, 20] for n in range(len(scores))], np.float32).reshape(-1, 4)
    names = np.zeros(len(scores), np.int32)
    return {
        "boxes": corners,
        "scores": np.array(scores, np.float32),
        "classes": names,
        "size": np.array([32, 32], np.int32),
    }


def stored(
    make_dataset_shard: MakeDatasetShard, noise: Noise, space: LabelSpace, values: list[Value], threshold: float
) -> ImageDataset:
    """Return a dataset of noise images with these labels, read with a threshold."""
    pixels = [noise(number) for number in range(len(values))]
    shard = make_dataset_shard("s0", pixels, {"head": (tasks.label(space), values)})
    (source,) = shard.label_sources["head"]
    return ImageDataset(
        [dataclasses.replace(shard, label_sources={"head": (dataclasses.replace(source, threshold=threshold),)})]
    )


def test_3_threshold_for_objects_and_segmentation_is_one_half() -> None:
    found = {task: threshold_for(StudentConfig(), task, LabelSpace(task)) for task in tasks.names()}
    halves = {task for task, threshold in found.items() if threshold == 0.5}
    assert halves == {"detection", "masks", "keypoints", "segmentation"}
    assert {found[task] for task in ("classification", "depth", "normals")} == {0.0}
    chosen = StudentConfig(thresholds={"detection": 0.6, "things": 0.7})
    assert [threshold_for(chosen, name, BOXES) for name in ("things", "others")] == [0.7, 0.6]


def test_3_threshold_keeps_box_of_score_one_half(make_dataset_shard: MakeDatasetShard, noise: Noise) -> None:
    dataset = stored(make_dataset_shard, noise, BOXES, [boxes_of([0.5, 0.499, 0.9])], 0.5)
    kept = dataset.values(0)["head"]
    np.testing.assert_allclose(kept["scores"], [0.5, 0.9])
    assert kept["boxes"][:, 0].tolist() == [0, 16]


def test_3_threshold_keeps_pixel_of_confidence_one_half(make_dataset_shard: MakeDatasetShard, noise: Noise) -> None:
    confidence = np.full((8, 8), 0.9, np.float32)
    confidence[0, :2] = (0.5, 0.499)
    value: Value = {"classes": np.full((8, 8), 2, np.uint16), "confidence": confidence}
    kept = stored(make_dataset_shard, noise, MASKS, [value], 0.5).values(0)["head"]["classes"]
    assert kept[0, :3].tolist() == [2, 65535, 2]
    assert (kept == 65535).sum() == 1


def test_3_segmentation_loss_of_ignored_pixels_is_zero_without_gradient(
    make_dataset_shard: MakeDatasetShard, noise: Noise
) -> None:
    rng = np.random.default_rng(0)
    value: Value = {
        "classes": rng.integers(0, 4, (8, 8)).astype(np.uint16),
        "confidence": np.where(rng.random((8, 8)) < 0.4, 0.499, 0.8).astype(np.float32),
    }
    dataset, task = stored(make_dataset_shard, noise, MASKS, [value], 0.5), tasks.model(MASKS)
    batch = collate_samples([dataset.sample(0, 32, "stretch", NO_AUGMENTATION, (0,))], {"head": task.collate})
    target = batch.targets["head"]["target"]
    dropped = torch.from_numpy(value["confidence"] < 0.5)[None]
    output = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = task.loss(output, target)
    loss.backward()
    kept = F.cross_entropy(output.detach(), torch.from_numpy(value["classes"].astype(np.int64))[None], reduction="none")
    torch.testing.assert_close(loss.detach(), kept[~dropped].mean())
    assert output.grad is not None
    per_pixel = output.grad.abs().sum(dim=1)
    assert not per_pixel[dropped].any()
    assert (per_pixel[~dropped] > 0).all()


def test_3_image_without_kept_boxes_is_an_example_of_background(
    make_dataset_shard: MakeDatasetShard, make_network: MakeNetwork, noise: Noise
) -> None:
    """Our choice, as the paper does not say: the image stays in the batch and teaches that nothing is there."""
    dataset = stored(make_dataset_shard, noise, BOXES, [boxes_of([0.3, 0.499])], 0.5)
    network = make_network({"head": BOXES}).train()
    sample = dataset.sample(0, 32, "stretch", NO_AUGMENTATION, (0,))
    batch = collate_samples([sample] * 2, {"head": network.tasks["head"].collate})
    assert batch.targets["head"]["rows"].tolist() == [0, 1]
    assert [len(image["boxes"]) for image in batch.targets["head"]["target"]["images"]] == [0, 0]
    loss = network.losses(batch.images, batch.targets)["head"]
    loss.backward()
    assert loss.item() > 0
    assert any(bool(parameter.grad.any()) for parameter in network.backbone.parameters() if parameter.grad is not None)


# 4. Soft targets


@given(st.integers(0, 1000), st.integers(2, 40))
def test_4_classification_loss_of_agreement_is_entropy_without_gradient(seed: int, classes: int) -> None:
    task = tasks.model(LabelSpace("classification", tuple(map(str, range(classes)))))
    logits = 3 * torch.randn(4, classes, generator=torch.Generator().manual_seed(seed))
    target = {"probs": logits.softmax(dim=1)}
    student = logits.clone().requires_grad_()
    loss = task.loss(student, target)
    loss.backward()
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    torch.testing.assert_close(loss.detach(), entropy)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6
    assert task.loss(logits + torch.randn(logits.shape), target) > loss


def test_4_classification_loss_of_one_hot_target_is_cross_entropy() -> None:
    task = tasks.model(KINDS)
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    names = torch.tensor([0, 2, 1, 1, 0])
    one_hot = F.one_hot(names, 3).float()
    torch.testing.assert_close(task.loss(logits, {"probs": one_hot}), F.cross_entropy(logits, names))


# 5. Every image has a target for every task; a true label wins


def equal(one: Value, other: Value) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(array, other[name]) for name, array in one.items())


def test_5_student_dataset_has_every_target_for_every_image(world: World) -> None:
    config = StudentConfig(loss_weights={"gabor": 1})
    inputs = world.inputs("student")
    dataset = student_dataset(config, heads_of(config, inputs), inputs)
    assert len(dataset) == 16
    for index in range(len(dataset)):
        assert set(dataset.values(index)) == {"kinds", "masks", "boxes", "depth", "gabor"}


def joined(world: World, labels: str) -> dict[str, dict[str, Value]]:
    """Return labels by image key and head."""
    config = StudentConfig.model_validate({"labels": labels, "loss_weights": {"gabor": 1}})
    inputs = world.inputs("student")
    dataset = student_dataset(config, heads_of(config, inputs), inputs)
    return {dataset.read(index)[0]: dataset.values(index) for index in range(len(dataset))}


def test_5_student_dataset_prefers_true_labels(world: World) -> None:
    both, pseudo, true = (joined(world, labels) for labels in ("true_first", "pseudo_only", "true_only"))
    assert (len(both), len(pseudo), len(true)) == (16, 16, 9)
    for key, values in both.items():
        for head, value in values.items():
            source = true[key] if key in true and head in true[key] else pseudo[key]
            assert equal(value, source[head]), (key, head)
    assert all(set(values) == {"kinds", "masks", "boxes", "depth"} for values in true.values())
    assert not any(equal(pseudo[key]["masks"], values["masks"]) for key, values in true.items())


def test_5_losses_of_true_and_pseudo_labels_are_the_same(
    make_dataset_shard: MakeDatasetShard, make_network: MakeNetwork, noise: Noise
) -> None:
    """The same label as a true and as a pseudo label gives the same batch and the same gradient."""
    rng = np.random.default_rng(0)
    values = [{"depth": rng.uniform(1, 5, (8, 8)).astype(np.float32)} for _ in range(2)]
    shard = make_dataset_shard("s0", [noise(1), noise(2)], {"depth": (tasks.label(DEPTH), values)})
    none = make_dataset_shard("s1", [noise(1), noise(2)], {"depth": (tasks.label(DEPTH), [None, None])})
    (source,), (empty,) = shard.label_sources["depth"], none.label_sources["depth"]
    gradients = []
    for label_sources in ((source,), (empty, LabelSource(source.file, source.label, 0.5)), (source, empty)):
        dataset = ImageDataset([dataclasses.replace(shard, label_sources={"depth": label_sources})])
        network = make_network({"depth": DEPTH})
        batch = collate_samples(
            [dataset.sample(n, 32, "stretch", NO_AUGMENTATION, (0,)) for n in range(2)],
            {"depth": network.tasks["depth"].collate},
        )
        WeightedSum({"depth": 1.3})(network.losses(batch.images, batch.targets), {"depth": 1.0}).backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    for others in gradients[1:]:
        assert all(torch.equal(one, other) for one, other in zip(gradients[0], others, strict=True))


# 6. Datasets are pooled and sampled uniformly


def chi_square(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    expected = shares * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_6_image_dataset_order_draws_sets_by_their_share_of_images(
    make_images: Callable[..., Any], noise: Noise
) -> None:
    sizes = (4, 8, 20)
    shards = []
    for number, size in enumerate(sizes):
        shard = make_images(f"set{number}", [noise(100 * number + n, 8, 8) for n in range(size)])
        shards.append(DatasetShard(shard, np.arange(size), {}))
    dataset = ImageDataset(shards)
    batches = [dataset.order(0, epoch)[8 * k : 8 * k + 8] for epoch in range(120) for k in (0, 2)]
    drawn = np.bincount([dataset.locate(int(index))[0] for batch in batches for index in batch], minlength=3)
    shares = np.array(sizes) / sum(sizes)
    assert chi_square(drawn, shares) < 13.8  # p = 0.001 at two degrees of freedom
    assert chi_square(drawn, np.full(3, 1 / 3)) > 100
    first = np.bincount([int(dataset.order(0, epoch)[0]) for epoch in range(640)], minlength=32)
    assert chi_square(first, np.full(32, 1 / 32)) < 61.1  # p = 0.001 at 31


def test_6_student_dataset_order_draws_every_image_once(world: World) -> None:
    config = StudentConfig(loss_weights={"gabor": 1})
    inputs = world.inputs("student")
    dataset = student_dataset(config, heads_of(config, inputs), inputs)
    keys = [dataset.read(int(index))[0] for index in dataset.order(0, 0)]
    assert len(set(keys)) == len(keys) == 7 + 9
