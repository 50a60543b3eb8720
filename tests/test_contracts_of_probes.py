"""Test what every probe must do. Probes are found by their files."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from evaluation.label_subsets import find_splits
from evaluation.probe import LabelledFeatures, ProbeData
from ingest.dataset import IngestedSet
from ingest.true_labels import class_ids
from pipeline.data.dataset import ImageDataset
from pipeline.models.backbone import Backbone
from pipeline.models.features import extract_features
from pipeline.models.initial import random_backbone
from pipeline.recipe.plugins import modules
from pipeline.steps.artifact import Artifact
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.labels import Label
from tests.evaluation.measuring import COLOURS, SIZE, kinds_in

ALL_PROBES = {name: importlib.import_module(module) for name, module in modules("evaluation.probes").items()}
TASK = "classification"
PROBES = [name for name, module in ALL_PROBES.items() if module.READS == "vector" and module.LABEL.task == TASK]
Pose = Callable[..., ProbeData]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Ingest images of three easy classes, and none of a fourth."""
    splits = {"train": range(6), "val": range(10, 12), "test": range(20, 23)}
    pictures = {f"{split}/{kind}": numbers for split, numbers in splits.items() for kind in COLOURS}
    return kinds_in(tmp_path_factory.mktemp("colours"), {**pictures, "train/unseen": ()})


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return random_backbone("test_resnet", SIZE).build()


def known(backbone: Backbone, dataset: ImageDataset, runtime: Runtime) -> LabelledFeatures:
    features = extract_features(backbone, dataset, range(len(dataset)), runtime)
    return LabelledFeatures(features, torch.from_numpy(class_ids(dataset, TASK)))


@dataclasses.dataclass(frozen=True)
class Case:
    """Data to learn from, and labelled features to test the probe on."""

    data: ProbeData
    test: LabelledFeatures


@pytest.fixture
def case(made: Artifact, backbone: Backbone, tmp_path: Path) -> Case:
    """Return a case with features of the images."""
    splits, runtime = find_splits(IngestedSet(made), TASK, "test"), Runtime(Root.of(tmp_path), "cpu", "32", 1)
    assert splits
    assert splits.val
    train, val, test = (known(backbone, each, runtime) for each in (splits.train, splits.val, splits.test))
    scratch = tmp_path / "scratch"
    return Case(ProbeData(train, val, len(COLOURS) + 1, 3, backbone, splits.train, scratch, runtime), test)


@pytest.fixture(params=PROBES)
def probe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a probe, with few steps if it is trained by gradient descent."""
    module = importlib.import_module(f"evaluation.probes.{request.param}")
    if hasattr(module, "SETTINGS"):
        monkeypatch.setattr(module, "SETTINGS", module.SETTINGS.model_copy(update={"steps": 40, "batch": 12}))
    return module


def test_probes_are_found() -> None:
    assert {"knn", "soft_nn", "linear", "linear_hpt"} <= set(PROBES)
    assert {"linear_dense", "detector", "linear_multilabel"} <= ALL_PROBES.keys() - set(PROBES)


@pytest.mark.parametrize("name", ALL_PROBES)
def test_probe_has_version_and_description(name: str) -> None:
    probe = ALL_PROBES[name]
    assert isinstance(probe.VERSION, int)
    vector = probe.READS == "vector" and probe.LABEL.task in (TASK, "multilabel")
    assert probe.READS == "maps" or vector, "vectors tell classes alone"
    assert issubclass(probe.LABEL, Label)
    assert len(probe.ABOUT) > 40
    assert not probe.ABOUT.endswith("."), "a part of a sentence"
    assert isinstance(probe.RANDOM, bool)


def test_probe_separates_separable_classes(probe: ModuleType, case: Case) -> None:
    found = probe.fit(case.data).classify(case.test.features)
    assert found.argmax(1).tolist() == case.test.classes.tolist()


def test_probe_returns_probabilities(probe: ModuleType, case: Case) -> None:
    found = probe.fit(case.data).classify(case.test.features)
    assert found.shape == (len(case.test.classes), case.data.classes)
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)))


def test_probe_settings_are_json(probe: ModuleType, case: Case) -> None:
    settings = probe.fit(case.data).settings
    assert all(isinstance(value, int | float | str) for value in settings.values())


def test_probe_is_deterministic_by_seed(probe: ModuleType, case: Case, tmp_path: Path) -> None:
    again = dataclasses.replace(case.data, scratch=tmp_path / "again")
    first, second = (probe.fit(data).classify(case.test.features) for data in (case.data, again))
    assert torch.equal(first, second)


def test_probe_random_says_if_it_depends_on_the_seed(probe: ModuleType, case: Case, tmp_path: Path) -> None:
    other = dataclasses.replace(case.data, seed=4, scratch=tmp_path / "other")
    first, second = (probe.fit(data).classify(case.test.features) for data in (case.data, other))
    assert torch.equal(first, second) != probe.RANDOM


def test_probe_leaves_the_backbone_and_its_statistics_unchanged(probe: ModuleType, case: Case) -> None:
    """HPT's separability: nothing but the classifier learns."""
    backbone = case.data.backbone
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    assert any("running_mean" in name for name in before)
    probe.fit(case.data).classify(case.test.features)
    after = backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("count", [2, 1])
def test_probe_answers_the_only_class(count: int, probe: ModuleType, case: Case) -> None:
    """All training images, two or one, are of the second class."""
    rows = (case.data.train.classes == 1).nonzero().flatten()[:count]
    few = LabelledFeatures(*(each[rows] for each in case.data.train))
    data = dataclasses.replace(case.data, train=few, images=case.data.images.subset(rows.tolist()))
    found = probe.fit(data).classify(case.test.features)
    assert set(found.argmax(1).tolist()) == {1}
    assert found.shape == (len(case.test.classes), data.classes)
