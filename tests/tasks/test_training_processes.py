"""`train_network` in several processes gives what one process gives, whichever has which labels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

import tasks
from pipeline.data.dataset import DatasetShard, ImageDataset
from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.base import FitConfig
from pipeline.recipe.runtime import Precision
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace, Value
from student.loss_weights import RunningLossWeighting
from tasks.network import Network, NetworkConfig
from tasks.training import TrainingPlan, WeightedSum, train_network
from tests.processes import Launcher

SPACES = {
    "kind": LabelSpace("classification", ("dark", "light")),
    "more": LabelSpace("classification", ("dark", "light")),
    "boxes": LabelSpace("detection", ("thing",)),
    "masks": LabelSpace("segmentation", ("ground", "sky")),
    "depth": LabelSpace("depth"),
}
STEPS = 4


def equal_weights(names: list[str]) -> nn.Module:
    return WeightedSum(dict.fromkeys(names, 1.0))


@dataclasses.dataclass(frozen=True)
class Training:
    """A training that every process runs."""

    shards: Sequence[DatasetShard]
    root: Path
    backbone: str
    heads: tuple[str, ...] = ("kind",)
    precision: Precision = "32"
    out: str = "out"
    weighting: Callable[[list[str]], nn.Module] = equal_weights

    def train(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Train, and return the weights and the counts."""
        heads = {name: SPACES[name].to_json() for name in self.heads}
        network = Network(NetworkConfig(backbone=self.backbone, image_size=32, width=16, proposals=16, heads=heads))
        fit = FitConfig(steps=STEPS, batch=5, lr=0.01)
        plan = TrainingPlan("t", fit, AugmentConfig(brightness=0, contrast=0), 3, self.root / self.out)
        runtime = Runtime(Root.of(self.root), "cpu", self.precision, 1)
        trained = train_network(network, self.weighting(list(self.heads)), ImageDataset(self.shards), plan, runtime)
        return {name: tensor.numpy() for name, tensor in network.state_dict().items()}, trained.counts()

    def losses(self) -> list[float]:
        lines = (self.root / self.out / "log/train.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line)["loss"] for line in lines]


def values(number: int) -> dict[str, Value]:
    """Return a label for every head."""
    boxes = np.array([[4, 4, 20, 20]], np.float32)
    masks: Value = {"classes": np.full((8, 8), number % 2, np.uint16), "confidence": np.ones((8, 8), np.float32)}
    return {
        "kind": {"probs": np.array([number % 2, 1 - number % 2], np.float32)},
        "more": {"probs": np.array([number % 2, 1 - number % 2], np.float32)},
        "boxes": {
            "boxes": boxes,
            "scores": np.ones(1, np.float32),
            "classes": np.zeros(1, np.int32),
            "size": np.array([32, 32], np.int32),
        },
        "masks": masks,
        "depth": {"depth": np.full((8, 8), 1.0 + number, np.float32)},
    }


@pytest.fixture
def shard(
    make_dataset_shard: Callable[..., DatasetShard], noise: Callable[..., NDArray[np.uint8]]
) -> Callable[..., DatasetShard]:
    """Return a function that makes a shard of twelve pictures, given the labelled ones by head."""

    def make(**labelled: Sequence[int]) -> DatasetShard:
        labels = {
            head: (tasks.label(SPACES[head]), [values(n)[head] if n in numbers else None for n in range(12)])
            for head, numbers in labelled.items()
        }
        return make_dataset_shard("s0", [noise(number) for number in range(12)], labels)

    return make


def assert_same(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> None:
    assert [name for name, array in one.items() if not np.array_equal(array, other[name])] == []


def test_train_network_in_two_processes_finds_the_same_weights_of_losses(
    launcher: Launcher, tmp_path: Path, shard: Callable[..., DatasetShard]
) -> None:
    made = [shard(kind=range(12), more=[3, 4, 7])]
    training = Training(made, tmp_path, "test_convnext", ("kind", "more"), weighting=RunningLossWeighting)
    (one, _), (other, _) = launcher.call(2, training.train)
    assert_same(one, other)
    alone = dataclasses.replace(training, out="alone")
    alone.train()
    np.testing.assert_allclose(training.losses(), alone.losses(), rtol=1e-4)
    equal = dataclasses.replace(training, out="equal", weighting=equal_weights)
    equal.train()
    assert training.losses()[:1] == pytest.approx(equal.losses()[:1], rel=1e-4), "the first step has weights of 1"
    assert training.losses()[1:] != pytest.approx(equal.losses()[1:], rel=1e-4)


@pytest.mark.parametrize("labelled", [range(12), [0, 1, 5, 11]], ids=["every image", "few"])
def test_train_network_in_two_processes_learns_what_one_learns(
    launcher: Launcher, tmp_path: Path, shard: Callable[..., DatasetShard], labelled: Sequence[int]
) -> None:
    """Without batch norms, losses agree to 1 in 100,000."""
    others = [number for number in range(12) if number not in labelled]
    training = Training([shard(kind=labelled, more=others)], tmp_path, "test_convnext", ("kind", "more"))
    (one, counts), (other, _) = launcher.call(2, training.train)
    assert counts["processes"] == 2
    assert_same(one, other)
    alone = dataclasses.replace(training, out="alone")
    assert "processes" not in alone.train()[1]
    np.testing.assert_allclose(training.losses(), alone.losses(), rtol=1e-5)


def test_train_network_on_cpu_keeps_batch_norms_per_process(
    launcher: Launcher, tmp_path: Path, shard: Callable[..., DatasetShard]
) -> None:
    training = Training([shard(kind=range(12))], tmp_path, "test_resnet")
    (one, _), (other, _) = launcher.call(2, training.train)
    assert_same(one, other)
    alone = dataclasses.replace(training, out="alone")
    alone.train()
    np.testing.assert_allclose(training.losses()[0], alone.losses()[0], rtol=0.05)
    assert training.losses() != pytest.approx(alone.losses(), rel=1e-4)


def test_train_network_accepts_processes_without_labels(
    launcher: Launcher, tmp_path: Path, shard: Callable[..., DatasetShard]
) -> None:
    made = shard(kind=[0], more=[], boxes=[1, 2], masks=[2], depth=[3, 4])  # and eight images without a label
    training = Training([made], tmp_path, "test_resnet", tuple(SPACES))
    (one, _), (other, _) = launcher.call(2, training.train)
    assert_same(one, other)
    assert all(np.isfinite(array).all() for array in one.values())
    assert len(training.losses()) == STEPS


def test_train_network_autotunes_in_one_process_for_all(
    launcher: Launcher, tmp_path: Path, shard: Callable[..., DatasetShard]
) -> None:
    training = Training([shard(kind=range(12))], tmp_path, "test_convnext", precision="auto")
    (one, counts), (other, others) = launcher.call(2, training.train)
    assert counts == others
    assert len(counts["choice"]["measured_ms"]) == 4
    assert len(list((tmp_path / "machine").iterdir())) == 1
    assert_same(one, other)
