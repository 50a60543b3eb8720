"""Weights of labels by their disagreement with others: in the dataset, in batches, and in microbatches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tasks
from flows.plan.steps import build_steps
from pipeline.data.dataset import Disagreement, ImageDataset, ImageSample
from pipeline.data.loader import WEIGHTS, Batch, collate_samples
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from pipeline.recipe.student import DisagreementMode
from pipeline.stores.labels import LabelSpace, Value
from student.disagreement import check_comparable
from tasks.training import SupervisedObjective, WeightedSum
from tests.augment import NO_AUGMENTATION
from tests.conftest import WORLD

if TYPE_CHECKING:
    from pipeline.data.dataset import DatasetShard
    from tasks.network import Network

KINDS = LabelSpace("classification", ("a", "b", "c"))
Noise = Callable[..., NDArray[np.uint8]]


def kinds(*probs: float) -> Value:
    return {"probs": np.array(probs, np.float32)}


@pytest.fixture
def compared(
    make_dataset_shard: Callable[..., DatasetShard], noise: Noise
) -> Callable[[DisagreementMode], ImageDataset]:
    """Makes four images whose labels are at distances of 0, 1/2 and 1 from others, and with no other one."""
    labels = [kinds(1, 0, 0), kinds(0.5, 0.5, 0), kinds(0, 0, 1), kinds(0, 1, 0)]
    others = [kinds(1, 0, 0), kinds(0, 1, 0), kinds(1, 0, 0), None]
    label = tasks.label(KINDS)
    images = [noise(number) for number in range(4)]
    shard = make_dataset_shard("s0", images, {"kinds": (label, labels), "others": (label, others)})

    def make(mode: DisagreementMode) -> ImageDataset:
        (source,), (other,) = shard.label_sources["kinds"], shard.label_sources["others"]
        weighted = dataclasses.replace(source, disagreement=Disagreement(other, mode))
        return ImageDataset([dataclasses.replace(shard, label_sources={"kinds": (weighted,)})])

    return make


@pytest.mark.parametrize(
    ("mode", "weights"), [("focus", [0, math.tanh(0.5), math.tanh(1), 1]), ("trust", [1, 0.5, 0, 1])]
)
def test_image_dataset_weights_labels_by_their_distance(
    compared: Callable[[DisagreementMode], ImageDataset], mode: DisagreementMode, weights: list[float]
) -> None:
    dataset = compared(mode)
    assert [dataset.weights(index)["kinds"] for index in range(4)] == pytest.approx(weights)
    samples = [dataset.sample(index, 32, "stretch", NO_AUGMENTATION, (0,)) for index in range(4)]
    batch = collate_samples(samples, {"kinds": tasks.model(KINDS).collate})
    assert batch.targets["kinds"]["target"][WEIGHTS].tolist() == pytest.approx(weights)


def test_collate_samples_gives_no_weights_where_nothing_is_compared(
    compared: Callable[[DisagreementMode], ImageDataset],
) -> None:
    [shard] = compared("trust").shards
    (source,) = shard.label_sources["kinds"]
    plain = dataclasses.replace(shard, label_sources={"kinds": (dataclasses.replace(source, disagreement=None),)})
    sample = ImageDataset([plain]).sample(0, 32, "stretch", NO_AUGMENTATION, (0,))
    assert WEIGHTS not in collate_samples([sample], {"kinds": tasks.model(KINDS).collate}).targets["kinds"]["target"]


@pytest.mark.parametrize("pieces", [[1, 3], [2, 2]], ids=str)
def test_supervised_objective_adds_weighted_microbatches_up(
    compared: Callable[[DisagreementMode], ImageDataset], make_network: Callable[..., Network], pieces: list[int]
) -> None:
    """The weights of a step may add up to less than 1."""
    network = make_network({"kinds": KINDS}, backbone="test_convnext").eval()
    objective = SupervisedObjective(network, WeightedSum({"kinds": 1.0}), torch.contiguous_format)
    dataset = compared("trust")
    samples = [dataset.sample(index, 32, "stretch", NO_AUGMENTATION, (0,)) for index in range(4)]
    for sample in samples:
        sample.weights["kinds"] *= 0.1
    batches = [collate_samples(part, {"kinds": network.tasks["kinds"].collate}) for part in _runs(samples, pieces)]
    whole = collate_samples(samples, {"kinds": network.tasks["kinds"].collate})

    def gradient(parts: list[Batch]) -> list[torch.Tensor]:
        network.zero_grad()
        total = objective.amounts(whole)
        assert total["kinds"] == pytest.approx(0.25)
        for part in parts:
            shares = {name: amount / total[name] for name, amount in objective.amounts(part).items()}
            objective(part, shares)[0].backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    for one, other in zip(gradient([whole]), gradient(batches), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def _runs(samples: list[ImageSample], sizes: list[int]) -> list[list[ImageSample]]:
    ends = np.cumsum(sizes).tolist()
    return [samples[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def test_check_comparable_names_what_differs() -> None:
    check_comparable("parts", KINDS, "others", KINDS)
    with pytest.raises(
        ConfigError, match=r"student\.disagreement\.parts: .* 'parts' and 'others' .* classes differ, .*'c'"
    ):
        check_comparable("parts", KINDS, "others", LabelSpace("classification", ("a", "b")))


def test_build_steps_refuses_labels_that_cannot_be_compared() -> None:
    text = WORLD.replace("teachers:", "teachers:\n  edges: {kind: analytic, function: edges}")
    text = text.replace("loss_weights: {gabor: 1}", "loss_weights: {gabor: 1, edges: 1}")
    compared = "disagreement: {edges: {against: gabor, mode: trust}}"
    with pytest.raises(ConfigError, match=r"student\.disagreement\.edges: .* can't be compared: their classes differ"):
        build_steps(parse_recipe(text.replace("loss_weights:", f"{compared}, loss_weights:"), "world"))
