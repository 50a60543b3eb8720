"""Initial backbones: random ones, those of earlier steps, and those of weights files."""

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
from pipeline.models.backbone import Backbone
from pipeline.models.initial import (
    InitialBackbone,
    backbone_from_artifact,
    backbone_from_config,
    backbone_from_weights,
    random_backbone,
    save_backbone,
)
from pipeline.models.timm_models import statistics
from pipeline.recipe.evaluation import StartConfig
from pipeline.recipe.plugins import modules
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from tasks.network import Network
from tests.conftest import World
from tests.disk import made_in
from tests.spaces import SPACES

SIZE = 32
BANDS = ((2000.0, 100.0, 0.5, 30.0, 7.0), (500.0, 10.0, 0.1, 3.0, 2.0))
Named = dict[str, Tensor]


def same(one: Named | None, other: Named | None) -> bool:
    assert one is not None
    assert other is not None
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def begin(runtime: Runtime) -> Callable[..., InitialBackbone]:
    """Returns a recipe's initial backbone: (seed, artifact of its step, the keys of its start) -> backbone."""

    def start(seed: int = 0, made: Artifact | None = None, **config: object) -> InitialBackbone:
        start_config = StartConfig.model_validate({"name": "it", "image_size": SIZE, **config})
        return backbone_from_config(start_config, Inputs({"step": made} if made else {}, runtime), seed)

    return start


def test_backbone_from_config_draws_random_weights_by_the_seed(begin: Callable[..., InitialBackbone]) -> None:
    one, again, other = (begin(seed, backbone="test_resnet") for seed in (1, 1, 2))
    assert same(one.weights, again.weights)
    assert not same(one.weights, other.weights)
    assert same(one.weights, dict(one.build().model.state_dict())), "the backbone has them, not others"
    assert (one.name, one.size, one.statistics) == ("test_resnet", SIZE, statistics("test_resnet"))


def test_backbone_from_artifact_of_a_network_is_its_backbone(
    make_network: Callable[..., Network], tmp_path: Path
) -> None:
    space = next(space for space in SPACES if space.task == "segmentation")
    network = make_network({"masks": space}, seed=3)
    network.backbone.mean.fill_(51.0)
    network.save(tmp_path)
    start = backbone_from_artifact(made_in(tmp_path))
    assert same(start.weights, dict(network.backbone.model.state_dict()))
    assert (start.name, start.size) == ("test_resnet", SIZE)
    assert list(start.statistics[0]) == pytest.approx([0.2] * 3)


def test_backbone_from_artifact_of_a_trained_teacher_loads_into_timm(world: World) -> None:
    start = backbone_from_artifact(world.artifacts["teacher.depth"])
    model = timm.create_model("test_resnet", num_classes=0)
    assert start.weights is not None
    model.load_state_dict(start.weights)


def test_backbone_from_artifact_of_a_published_classifier_leaves_out_the_classifier(
    tmp_path: Path, runtime: Runtime
) -> None:
    torch.manual_seed(4)
    model = timm.create_model("test_resnet", num_classes=3)
    save_file(model.state_dict(), tmp_path / "published.safetensors")
    teacher = {"kind": "pretrained", "model": "test_resnet", "weights": str(tmp_path / "published.safetensors")}
    config = {**teacher, "classes": ["a", "b", "c"], "image_size": 64, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "made").mkdir()
    assert "pretrained" in modules("teachers")
    make = importlib.import_module("teachers.pretrained").make
    make({"name": "it", "teacher": config}, Inputs({}, runtime), tmp_path / "made")
    start = backbone_from_artifact(made_in(tmp_path / "made"))
    assert start.weights is not None
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in start.weights.items())
    assert start.weights.keys() == timm.create_model("test_resnet", num_classes=0).state_dict().keys()
    assert (start.name, start.size, start.statistics) == ("test_resnet", 64, ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))


def test_backbone_from_artifact_of_a_stage_is_what_save_backbone_saved(tmp_path: Path) -> None:
    backbone = Backbone("test_vit", 64, ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    save_backbone(backbone, tmp_path)
    start = backbone_from_artifact(made_in(tmp_path))
    assert same(start.weights, dict(backbone.model.state_dict()))
    assert (start.name, start.size) == ("test_vit", 64)
    assert list(start.statistics[0]) == pytest.approx([0.1, 0.2, 0.3])
    assert list(start.statistics[1]) == pytest.approx([0.4, 0.5, 0.6])


def test_backbone_from_config_of_a_file_has_its_weights(begin: Callable[..., InitialBackbone], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    model = timm.create_model("test_resnet", num_classes=7)
    save_file(model.state_dict(), path)
    start = begin(backbone="test_resnet", weights=str(path))
    assert start.weights is not None
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in start.weights.items())
    assert same(start.weights, backbone_from_weights("test_resnet", SIZE, str(path)).weights)


def test_backbone_from_config_resamples_to_the_size_it_asks_for(
    begin: Callable[..., InitialBackbone], tmp_path: Path
) -> None:
    """A transformer has an embedding per position: these are resampled, all else stays."""
    backbone = Backbone("test_vit", 64, ((0.5,) * 3, (0.5,) * 3))
    save_backbone(backbone, tmp_path)
    start = begin(made=made_in(tmp_path), step="step")
    before = dict(backbone.model.state_dict())
    assert start.size == SIZE
    assert start.weights is not None
    changed = {name for name, tensor in start.weights.items() if not torch.equal(tensor, before[name])}
    assert changed == {"pos_embed"}
    assert start.weights["pos_embed"].shape[1] < before["pos_embed"].shape[1]
    assert start.build()(torch.rand(2, 3, SIZE, SIZE)).shape == (2, backbone.width)


def test_resized_convolutional_backbone_is_the_same() -> None:
    start = dataclasses.replace(
        random_backbone("test_resnet", 64),
        weights=dict(random_backbone("test_resnet", 64).build().model.state_dict()),
    )
    other = start.resized(SIZE)
    assert same(start.weights, other.weights)
    assert other.size == SIZE


def test_backbone_from_artifact_refuses_a_teacher_without_one(world: World) -> None:
    says = r"teacher\.gabor.*holds no timm backbone.*the student, stages, and teachers with a timm backbone do"
    with pytest.raises(ConfigError, match=says):
        backbone_from_artifact(world.artifacts["teacher.gabor"])


def test_with_channels_adapts_the_first_convolution_as_timm_does() -> None:
    torch.manual_seed(0)
    start = dataclasses.replace(
        random_backbone("test_resnet", SIZE), weights=timm.create_model("test_resnet", num_classes=0).state_dict()
    )
    assert start.with_channels(None) is start
    adapted = start.with_channels(BANDS)
    assert adapted.statistics == BANDS
    first = "conv1.0.weight"
    assert start.weights
    assert adapted.weights
    expected = start.weights | {first: timm.models.adapt_input_conv(5, start.weights[first])}
    assert same(adapted.weights, expected)
    assert adapted.build()(torch.full((2, 5, SIZE, SIZE), 2000.0)).isfinite().all()


def test_with_channels_refuses_other_numbers_of_bands() -> None:
    start = random_backbone("test_resnet", SIZE, BANDS)
    assert start.with_channels(((0.0,) * 5, (1.0,) * 5)) is start, "it keeps its own statistics"
    with pytest.raises(ConfigError, match="for images of 5 channels can't take images of 3: start from one for 3"):
        start.with_channels(None)
    with pytest.raises(ConfigError, match="for images of 5 channels can't take images of 4"):
        start.with_channels((BANDS[0][:4], BANDS[1][:4]))


def test_random_backbone_draws_weights_when_an_encoder_is_built() -> None:
    draw = functools.partial(random_backbone, "test_resnet", SIZE)
    assert draw().weights is None
    torch.manual_seed(1)
    first = dict(draw().build().model.state_dict())
    assert not same(first, dict(draw().build().model.state_dict()))
