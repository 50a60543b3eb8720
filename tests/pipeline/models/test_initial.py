"""What trainings and measurements start from: scratch, what steps left behind, and files of weights."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.backbone import statistics
from pipeline.models.encoder import Encoder
from pipeline.models.initial import InitialBackbone, fresh, of_artifact, of_config, of_weights, save_backbone
from pipeline.recipe.evaluation import StartConfig
from pipeline.recipe.plugins import modules
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from tasks.network import Network
from tests.conftest import World
from tests.disk import made_in
from tests.spaces import SPACES

SIZE = 32
Named = dict[str, Tensor]


def same(one: Named | None, other: Named | None) -> bool:
    assert one is not None
    assert other is not None
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def begin(runtime: Runtime) -> Callable[..., InitialBackbone]:
    """What a recipe names: (a seed, then the start's keys, and the artifact of its step) -> the start."""

    def start(seed: int = 0, made: Artifact | None = None, **config: object) -> InitialBackbone:
        told = StartConfig.model_validate({"name": "it", "image_size": SIZE, **config})
        return of_config(told, Inputs({"step": made} if made else {}, runtime), seed)

    return start


def test_scratch_is_the_seeds_and_no_others(begin: Callable[..., InitialBackbone]) -> None:
    one, again, other = (begin(seed, backbone="test_resnet") for seed in (1, 1, 2))
    assert same(one.weights, again.weights)
    assert not same(one.weights, other.weights)
    assert same(one.weights, dict(one.encoder().model.state_dict())), "the encoder has them, not others"
    assert (one.name, one.size, one.statistics) == ("test_resnet", SIZE, statistics("test_resnet"))


def test_of_the_student_and_of_teachers_it_is_the_backbone_of_their_networks(
    make_network: Callable[..., Network], tmp_path: Path
) -> None:
    space = next(space for space in SPACES if space.task == "segmentation")
    network = make_network({"masks": space}, seed=3)
    network.mean.fill_(51.0)
    network.save(tmp_path)
    start = of_artifact(made_in(tmp_path))
    assert same(start.weights, dict(network.backbone.model.state_dict()))
    assert (start.name, start.size) == ("test_resnet", SIZE)
    assert list(start.statistics[0]) == pytest.approx([0.2] * 3)


def test_a_teacher_that_was_trained_here_is_a_start(world: World) -> None:
    start = of_artifact(world.artifacts["teacher.depth"])
    model = timm.create_model("test_resnet", num_classes=0)
    assert start.weights is not None
    model.load_state_dict(start.weights)


def test_of_a_published_classifier_it_is_all_but_the_classifier(tmp_path: Path, runtime: Runtime) -> None:
    torch.manual_seed(4)
    model = timm.create_model("test_resnet", num_classes=3)
    save_file(model.state_dict(), tmp_path / "published.safetensors")
    teacher = {"kind": "pretrained", "model": "test_resnet", "weights": str(tmp_path / "published.safetensors")}
    told = {**teacher, "classes": ["a", "b", "c"], "image_size": 64, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "made").mkdir()
    assert "pretrained" in modules("teachers")
    make = importlib.import_module("teachers.pretrained").make
    make({"name": "it", "teacher": told}, Inputs({}, runtime), tmp_path / "made")
    start = of_artifact(made_in(tmp_path / "made"))
    assert start.weights is not None
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in start.weights.items())
    assert start.weights.keys() == timm.create_model("test_resnet", num_classes=0).state_dict().keys()
    assert (start.name, start.size, start.statistics) == ("test_resnet", 64, ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))


def test_of_a_stage_it_is_what_the_stage_left(tmp_path: Path) -> None:
    encoder = Encoder("test_vit", 64, ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    save_backbone(encoder, tmp_path)
    start = of_artifact(made_in(tmp_path))
    assert same(start.weights, dict(encoder.model.state_dict()))
    assert (start.name, start.size) == ("test_vit", 64)
    assert list(start.statistics[0]) == pytest.approx([0.1, 0.2, 0.3])
    assert list(start.statistics[1]) == pytest.approx([0.4, 0.5, 0.6])


def test_of_a_file_it_is_the_weights_in_it(begin: Callable[..., InitialBackbone], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    model = timm.create_model("test_resnet", num_classes=7)
    save_file(model.state_dict(), path)
    start = begin(backbone="test_resnet", weights=str(path))
    assert start.weights is not None
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in start.weights.items())
    assert same(start.weights, of_weights("test_resnet", SIZE, str(path)).weights)


def test_a_start_comes_for_the_size_that_is_measured_at(begin: Callable[..., InitialBackbone], tmp_path: Path) -> None:
    """A transformer has an embedding per position: they are resampled, all else stays."""
    encoder = Encoder("test_vit", 64, ((0.5,) * 3, (0.5,) * 3))
    save_backbone(encoder, tmp_path)
    start = begin(made=made_in(tmp_path), step="step")
    before = dict(encoder.model.state_dict())
    assert start.size == SIZE
    assert start.weights is not None
    changed = {name for name, tensor in start.weights.items() if not torch.equal(tensor, before[name])}
    assert changed == {"pos_embed"}
    assert start.weights["pos_embed"].shape[1] < before["pos_embed"].shape[1]
    assert start.encoder()(torch.rand(2, 3, SIZE, SIZE)).shape == (2, encoder.width)


def test_a_convolutional_network_is_the_same_at_any_size() -> None:
    start = dataclasses.replace(
        fresh("test_resnet", 64), weights=dict(fresh("test_resnet", 64).encoder().model.state_dict())
    )
    other = start.resized(SIZE)
    assert same(start.weights, other.weights)
    assert other.size == SIZE


def test_a_teacher_without_a_backbone_is_refused_with_those_that_have_one(world: World) -> None:
    says = r"teacher\.gabor.*holds no timm backbone.*the student, stages, and teachers with a timm backbone do"
    with pytest.raises(ConfigError, match=says):
        of_artifact(world.artifacts["teacher.gabor"])


def test_fresh_weights_are_drawn_as_they_are_asked_for() -> None:
    draw = functools.partial(fresh, "test_resnet", SIZE)
    assert draw().weights is None
    torch.manual_seed(1)
    first = dict(draw().encoder().model.state_dict())
    assert not same(first, dict(draw().encoder().model.state_dict()))
