"""Vectors that predictors tell of images: the same alone and beside predictions, which they leave as they are."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import tasks
from pipeline.models.backbone import Classifier
from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace
from tasks.network import Network, NetworkConfig
from tasks.prediction import Predictor, Preprocessing, network_predictor
from teachers import analytic
from teachers.models.torchvision_models import build, build_predictor
from teachers.models.trunk import pool_features

SIDE = 64
SIZES = [(128, 64)] * 4
STATISTICS = ((0.5,) * 3, (0.25,) * 3)


def pictures() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, SIDE, SIDE), dtype=np.uint8))


def classifier(name: str) -> Predictor:
    network = Classifier(name, "mine", 3, SIDE, STATISTICS)
    return Predictor(network, {"mine": tasks.model(LabelSpace("classification", tuple("abc")))}, Preprocessing(SIDE))


def published(task: str, name: str) -> Predictor:
    about = {"task": task, "model": name, "classes": ["__background__", "a", "b"], "image_size": SIDE}
    model, _ = build(about)
    return build_predictor({**about, "head": "mine", "resize": "stretch"}, model.state_dict())


def own(task: str) -> Predictor:
    space = LabelSpace(task, ("a", "b")).to_json()
    config = NetworkConfig(backbone="test_resnet", image_size=SIDE, width=16, proposals=8, heads={"mine": space})
    return network_predictor(Network(config).eval())


MADE = {
    "timm resnet": lambda: classifier("test_resnet"),
    "timm efficientnet": lambda: classifier("test_efficientnet"),
    "timm vit": lambda: classifier("test_vit"),
    "torchvision segmenter": lambda: published("segmentation", "lraspp_mobilenet_v3_large"),
    "torchvision detector": lambda: published("detection", "ssdlite320_mobilenet_v3_large"),
    "own classifier": lambda: own("classification"),
    "own detector": lambda: own("detection"),
    "own segmenter": lambda: own("segmentation"),
}


@pytest.fixture(params=MADE)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    torch.manual_seed(0)
    return MADE[request.param]()


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return np.allclose(one, other, atol=1e-5)


def test_predict_with_vectors_predicts_as_predict_and_embeds_as_embed(predictor: Predictor) -> None:
    predictions, vectors = predictor.predict_with_vectors(pictures(), SIZES)
    assert vectors is not None
    assert vectors.dtype == np.float32
    assert vectors.shape[0] == 4
    assert vectors.shape[1] > 8
    assert equal(predictions, predictor.predict(pictures(), SIZES))
    alone = predictor.embed(pictures())
    assert alone is not None
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


def test_embed_does_not_depend_on_the_batch(predictor: Predictor) -> None:
    whole = predictor.embed(pictures())
    predictor._max_batch = 3
    parts = predictor.embed(pictures())
    assert whole is not None
    assert parts is not None
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_embed_in_several_threads_gives_each_its_own_vectors() -> None:
    predictor = MADE["torchvision segmenter"]()
    images = pictures()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: predictor.embed(images[row : row + 1]), [0, 1, 2, 3] * 4))
    expected = predictor.embed(images)
    assert expected is not None
    for number, vector in enumerate(found):
        assert vector is not None
        np.testing.assert_allclose(vector[0], expected[number % 4], atol=1e-5)


def test_vector_of_a_classifier_is_what_timm_gives_without_its_last_layer() -> None:
    torch.manual_seed(0)
    predictor = classifier("test_efficientnet")
    network: Any = predictor.network
    without = timm.create_model("test_efficientnet", num_classes=0).eval()
    without.load_state_dict(network.model.state_dict(), strict=False)
    with torch.inference_mode():
        expected = without((pictures() - network.mean) / network.std)
    found = predictor.embed(pictures())
    assert found is not None
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_embed_of_a_function_of_the_image_is_none(tmp_path: Path) -> None:
    settings = {"kind": "analytic", "image_size": SIDE, "wavelengths": [4.0]}
    config = {"name": "mine", "teacher": settings, "seed": 0}
    analytic.make(config, Inputs({}, Runtime(Root.of(tmp_path))), tmp_path)
    predictor = analytic.load(tmp_path)
    assert predictor.embed(pictures()) is None
    assert predictor.predict_with_vectors(pictures(), SIZES)[1] is None


def test_pool_features_averages_maps_and_tokens_over_space() -> None:
    maps = torch.arange(24.0).view(1, 2, 3, 4)
    tokens = maps.flatten(2).transpose(1, 2)
    expected = [[5.5, 17.5]]
    assert pool_features(maps).tolist() == pool_features(tokens).tolist() == expected  # type: ignore[union-attr]
    assert pool_features({"one": maps, "two": maps}).tolist() == [[5.5, 17.5] * 2]  # type: ignore[union-attr]
    assert pool_features({"last_hidden_state": tokens, "more": None}).tolist() == expected  # type: ignore[union-attr]
    assert pool_features("nothing") is None
    assert pool_features([torch.zeros(1, 2)]) is None
