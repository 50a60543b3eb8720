"""Training, prediction and scoring: reproducible training, preprocessing, predictors, scores."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import tasks
from pipeline.data.augment import PAD_COLOR
from pipeline.data.dataset import DatasetShard, ImageDataset
from pipeline.data.decode import decode_image
from pipeline.data.loader import Batch
from pipeline.errors import ConfigError, DataError, Stopped
from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.base import FitConfig
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import LabelSpace, Value
from tasks.network import Network
from tasks.prediction import Predictor, Preprocessing, network_predictor, to_numpy
from tasks.scoring import predict_all, score
from tasks.task import Features
from tasks.training import SupervisedObjective, TrainingPlan, WeightedSum, train_network

Noise = Callable[..., NDArray[np.uint8]]
MakeNetwork = Callable[..., Network]
KINDS = LabelSpace("classification", ("dark", "light"))


def kind(light: bool) -> Value:
    return {"probs": np.array([not light, light], np.float32)}


@pytest.fixture
def dataset(make_dataset_shard: Callable[..., DatasetShard], noise: Noise) -> ImageDataset:
    """Return twelve pictures of different sizes, labelled as dark or light."""
    pictures = [noise(number, 30 + number, 50) // 3 + 150 * (number % 2) for number in range(12)]
    labels = {"kind": (tasks.label(KINDS), [kind(bool(number % 2)) for number in range(12)])}
    return ImageDataset([make_dataset_shard("s0", [picture.astype(np.uint8) for picture in pictures], labels)])


def plan(out: Path, steps: int, seed: int = 0, name: str = "t", **fields: Any) -> TrainingPlan:
    fit = FitConfig.model_validate({"steps": steps, "batch": 4, "lr": 0.01, **fields})
    return TrainingPlan(name, fit, AugmentConfig(brightness=0, contrast=0), seed, out)


def test_train_network_tells_dark_from_light(
    dataset: ImageDataset, make_network: MakeNetwork, tmp_path: Path, runtime: Runtime
) -> None:
    network = make_network({"kind": KINDS})
    before = score(network_predictor(network), dataset, "kind", runtime)["accuracy"]
    train_network(network, WeightedSum({"kind": 1.0}), dataset, plan(tmp_path, 25), runtime)
    after = score(network_predictor(network), dataset, "kind", runtime)["accuracy"]
    assert before < 0.9
    assert after == 1.0


def test_train_network_refuses_a_batch_far_above_the_images(
    dataset: ImageDataset, make_network: MakeNetwork, tmp_path: Path, runtime: Runtime
) -> None:
    network, batch = make_network({"kind": KINDS}), 10**8
    says = rf"^teacher\.kind: batch \({batch}\) is far more than the {len(dataset)} images there are"
    asked = plan(tmp_path, 3, name="teacher.kind", batch=batch)
    with pytest.raises(ConfigError, match=says):
        train_network(network, WeightedSum({"kind": 1.0}), dataset, asked, runtime)


def test_train_network_depends_on_the_seed(
    dataset: ImageDataset, make_network: MakeNetwork, tmp_path: Path, runtime: Runtime
) -> None:
    states = []
    for number, seed in enumerate((5, 5, 6)):
        network = make_network({"kind": KINDS})
        train_network(network, WeightedSum({"kind": 1.0}), dataset, plan(tmp_path / str(number), 3, seed), runtime)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["heads.kind.weight"], states[2]["heads.kind.weight"])


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_train_network_learns_the_same_with_gradient_checkpointing(
    backbone: str, dataset: ImageDataset, make_network: MakeNetwork, tmp_path: Path, runtime: Runtime
) -> None:
    """In microbatches, with a moving average, and resumed in between without it."""
    states = []
    for parts in ([False], [True], [True, False]):
        out = tmp_path / "".join(str(part) for part in parts)
        for number, is_on in enumerate(parts, start=1):
            network = make_network({"kind": KINDS, "depth": LabelSpace("depth")}, backbone=backbone)
            stop = threading.Event()
            own = dataclasses.replace(runtime, gradient_checkpointing=is_on, stop=stop, checkpoint_s=0)
            if number < len(parts):
                own = dataclasses.replace(own, progress=lambda *_, stop=stop: stop.set())
            with contextlib.suppress(Stopped):
                train_network(network, WeightedSum({"kind": 1.0}), dataset, plan(out, 3, accumulate=2, ema=0.9), own)
        assert len((out / "log/train.jsonl").read_text("utf-8").splitlines()) == 3
        states.append(network.state_dict())
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(torch.equal(states[0][name], tensor) for name, tensor in state.items())


def test_training_result_counts_out_of_memory(
    dataset: ImageDataset, make_network: MakeNetwork, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_memory(network: Network, images: torch.Tensor) -> Features:
        if len(images) > 2:
            raise torch.OutOfMemoryError("no more")
        return features(network, images)

    features = Network.features
    monkeypatch.setattr(Network, "features", small_memory)
    network = make_network({"kind": KINDS})
    trained = train_network(network, WeightedSum({"kind": 1.0}), dataset, plan(tmp_path, 2), runtime)
    assert trained.counts()["out_of_memory"] == [{"step": 1, "pieces": 2, "images": 2}]
    assert "processes" not in trained.counts()


def test_train_network_refuses_empty_dataset(make_network: MakeNetwork, tmp_path: Path, runtime: Runtime) -> None:
    network = make_network({"kind": KINDS})
    with pytest.raises(DataError, match=r"teacher\.x: there is not one image with a label for"):
        train_network(
            network, WeightedSum({"kind": 1.0}), ImageDataset([]), plan(tmp_path, 1, name="teacher.x"), runtime
        )


def test_supervised_objective_is_0_for_images_without_label(make_network: MakeNetwork) -> None:
    objective = SupervisedObjective(make_network({"kind": KINDS}), WeightedSum({"kind": 1.0}), torch.contiguous_format)
    total, losses = objective(Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ["k1", "k2"], {}), {})
    total.backward()
    assert (total.item(), losses) == (0, {})
    backbone = [one.grad for one in objective.network.backbone.parameters() if one.grad is not None]
    assert len(backbone) == len(list(objective.network.backbone.parameters()))
    assert not any(gradient.any() for gradient in backbone)


def test_weighted_sum_adds_weights_times_shares_times_losses() -> None:
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert WeightedSum({"a": 0.5, "b": 10.0, "c": 7.0})(losses, {"a": 1.0, "b": 1.0}).item() == 31.0
    assert WeightedSum({"a": 0.5, "b": 10.0, "c": 7.0})(losses, {"a": 0.5, "b": 0.1}).item() == 3.5


@pytest.fixture(params=[[5], [0, 1, 6], range(8)], ids=str)
def sparse(
    request: pytest.FixtureRequest, make_dataset_shard: Callable[..., DatasetShard], noise: Noise
) -> ImageDataset:
    """Return eight images, some with a label for `kind` and the others with one for `other`."""
    labelled = request.param
    kinds = [kind(bool(number % 2)) if number in labelled else None for number in range(8)]
    others = [kind(bool(number % 3)) if number not in labelled else None for number in range(8)]
    labels = {"kind": (tasks.label(KINDS), kinds), "other": (tasks.label(KINDS), others)}
    return ImageDataset([make_dataset_shard("s0", [noise(number) for number in range(8)], labels)])


def test_train_network_gives_same_weights_for_any_accumulation(
    sparse: ImageDataset, make_network: MakeNetwork, tmp_path: Path, runtime: Runtime
) -> None:
    """A step with few labels gives the same weights in one pass and in several."""
    weights, logs = [], []
    for pieces in (1, 2, 4, 8):
        network = make_network({"kind": KINDS, "other": KINDS}, backbone="test_convnext")
        fit: dict[str, Any] = {"batch": 8, "accumulate": pieces, "clip": None}
        fit |= {"optimizer": "sgd", "momentum": 0, "lr": 1}
        out = tmp_path / str(pieces)
        train_network(network, WeightedSum({"kind": 1, "other": 3}), sparse, plan(out, 1, **fit), runtime)
        weights.append(torch.cat([one.detach().flatten() for one in network.parameters()]))
        logs.append(json.loads((out / "log/train.jsonl").read_text("utf-8")))
    for other, log in zip(weights[1:], logs[1:], strict=True):
        torch.testing.assert_close(other, weights[0], rtol=1e-3, atol=1e-5)
        assert log["losses"] == pytest.approx(logs[0]["losses"], rel=1e-4)
        assert log["loss"] == pytest.approx(logs[0]["loss"], rel=1e-4)


def test_preprocessing_takes_whole_image_or_center_crop() -> None:
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[15:45, 35:65] = 200  # the central square of half the shorter side
    image = Image.fromarray(pixels)
    assert (Preprocessing(30, crop_pct=0.5)(image, image.size) == 200).all()
    assert (Preprocessing(30, crop_pct=0.5, bicubic=True)(image, image.size) == 200).all()
    whole = Preprocessing(64)(image, image.size)
    assert whole.shape == (64, 64, 3)
    assert whole[32, 32, 0] == 200
    assert whole[2, 2, 0] == 0
    np.testing.assert_allclose(whole.mean(), pixels.mean(), rtol=0.02)


def test_preprocessing_states_min_decode_size() -> None:
    assert Preprocessing(64).min_decode_size((200, 100)) == (64, 64)
    assert Preprocessing(64, "pad").min_decode_size((200, 100)) == (64, 32)
    assert Preprocessing(64, crop_pct=0.5).min_decode_size((200, 100)) == (128, 128)


def test_preprocessing_is_hashable() -> None:
    assert len({Preprocessing(64), Preprocessing(64), Preprocessing(64, "pad"), Preprocessing(32)}) == 3


def test_predictor_is_in_eval_mode_and_deterministic(make_network: MakeNetwork) -> None:
    network = make_network({"kind": KINDS}).train()
    predictor = network_predictor(network)
    assert not network.training
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    sizes = [(32, 32)] * 3
    one, other = (predictor.predict(images, sizes)["kind"]["probs"] for _ in range(2))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(predictor.predict(images[1:], sizes[1:])["kind"]["probs"], one[1:], atol=1e-6)


class SmallMemoryNetwork(torch.nn.Module):
    """A network on a device whose memory holds `room` images at once."""

    def __init__(self, network: Network, room: int) -> None:
        super().__init__()
        self.network, self.room, self.seen = network, room, list[int]()

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        self.seen.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("no more")
        found: dict[str, Any] = self.network(images)
        return found


HEADS = {
    "kind": KINDS,
    "boxes": LabelSpace("detection", ("a",)),
    "masks": LabelSpace("segmentation", ("a", "b")),
    "depth": LabelSpace("depth"),
}


@pytest.mark.parametrize("room", [1, 2, 3])
def test_predictor_splits_batch_that_memory_does_not_hold(make_network: MakeNetwork, room: int) -> None:
    network = make_network(HEADS, image_size=64)
    small_memory = SmallMemoryNetwork(network, room)
    predictor = Predictor(small_memory, network.tasks, Preprocessing(64))
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    sizes = [(64, 64)] * 5
    found, expected = predictor.predict(images, sizes), network_predictor(network).predict(images, sizes)
    for index in range(5):
        values, others = (predictor.values(some, index, (64, 64)) for some in (found, expected))
        for head in HEADS:
            for name, array in others[head].items():
                np.testing.assert_allclose(values[head][name], array, rtol=1e-3, atol=1e-3, err_msg=f"{head} {name}")
    small_memory.seen.clear()
    predictor.predict(images, sizes)
    assert max(small_memory.seen) <= room, "what once was too much is not tried again"


def test_predictor_refuses_image_that_memory_does_not_hold(make_network: MakeNetwork) -> None:
    predictor = Predictor(SmallMemoryNetwork(make_network({"kind": KINDS}), 0), {}, Preprocessing(32))
    with pytest.raises(ConfigError, match="does not hold one image's prediction"):
        predictor.predict(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), [(32, 32)] * 3)


def test_predict_all_keeps_order_and_image_sizes(
    dataset: ImageDataset, make_network: MakeNetwork, runtime: Runtime
) -> None:
    predictor = network_predictor(make_network({"boxes": LabelSpace("detection", ("a",))}, image_size=64))
    found = list(predict_all(predictor, dataset, dataclasses.replace(runtime, workers=2)))
    assert [index for index, _ in found] == list(range(12))
    sizes = [decode_image(dataset.read(index)[1]).size for index in range(12)]
    assert [tuple(values["boxes"]["size"].tolist()) for _, values in found] == sizes
    assert len(set(sizes)) == 12


def test_score_does_not_depend_on_batches(
    dataset: ImageDataset, make_network: MakeNetwork, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = network_predictor(make_network({"kind": KINDS}))
    scores = []
    for batch in (1, 5, 16):
        monkeypatch.setattr("tasks.scoring.BATCH", batch)
        scores.append(score(predictor, dataset, "kind", runtime))
    assert scores[0] == scores[1] == scores[2]


def test_to_numpy_converts_nested_tensors() -> None:
    tree = {"a": [torch.ones(2, dtype=torch.bfloat16)], "b": {"c": torch.arange(3)}, "d": 4, "e": "text"}
    arrays = to_numpy(tree)
    assert arrays["a"][0].dtype == np.float32
    assert arrays["b"]["c"].tolist() == [0, 1, 2]
    assert (arrays["d"], arrays["e"]) == (4, "text")


def test_train_network_pads_images_as_its_predictor_does(
    dataset: ImageDataset, make_network: MakeNetwork, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_network({"kind": KINDS}, resize="pad")
    seen: list[torch.Tensor] = []
    features = network.features

    def seen_features(images: torch.Tensor) -> Features:
        seen.append(images)
        return features(images)

    monkeypatch.setattr(network, "features", seen_features)
    unchanged = AugmentConfig(area=1, aspect=1, brightness=0, contrast=0, saturation=0)
    train_network(
        network, WeightedSum({"kind": 1.0}), dataset, dataclasses.replace(plan(tmp_path, 3), augment=unchanged), runtime
    )
    bottom = torch.cat(seen)[:, :, 28:]  # images are 50 wide and 30 to 41 high: of 32 rows they cover 20 to 28
    assert len(bottom) >= 12
    assert (bottom == torch.tensor(PAD_COLOR).view(1, 3, 1, 1)).all()
    network.save(tmp_path)
    preprocess = network_predictor(Network.load(tmp_path)).preprocessing
    assert preprocess == Preprocessing(32, "pad")
    wide = Image.new("RGB", (50, 30), "white")
    assert (preprocess(wide, wide.size)[20:] == PAD_COLOR).all()
    assert (preprocess(wide, wide.size)[:20] == 255).all()
