"""Backbones: precision, statistics and timm's own keys."""

from __future__ import annotations

import pytest
import torch
from timm import layers

from pipeline.errors import ConfigError
from pipeline.models.backbone import Backbone
from pipeline.models.timm_models import create_timm_model, statistics

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(("name", "lowered"), [("test_resnet", True), ("test_efficientnet", False)])
def test_backbone_with_grouped_convolutions_trains_in_float32_on_the_cpu(name: str, lowered: bool) -> None:
    backbone, images = Backbone(name, 64, IMAGENET), torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        trained = {backbone.train()(images).dtype, *(each.dtype for each in backbone.readout(images).maps)}
        tested = {each.dtype for each in backbone.eval().readout(images).maps}
    assert (torch.bfloat16 in trained) == lowered
    assert torch.bfloat16 in tested


def test_backbone_takes_bytes_and_floats_alike() -> None:
    backbone = Backbone("test_resnet", 64, IMAGENET).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(backbone(images), backbone(images.float() / 255))
    torch.testing.assert_close(
        backbone.normalize(images), (images / 255 - backbone.mean / 255) / (backbone.std / 255), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", [layers.LayerNorm2d, layers.GroupNorm1, layers.RmsNorm, layers.SimpleNorm2dFp32])
def test_backbone_finds_normalisation_layers_of_any_kind(kind: type[torch.nn.Module]) -> None:
    backbone = Backbone("test_resnet", 64, IMAGENET)
    backbone.model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), kind(8), layers.ConvNormAct(8, 8))
    assert [type(norm) for norm in backbone.norm_layers()] == [kind, layers.BatchNormAct2d]
    backbone.train_only_norms()
    trained = {name for name, parameter in backbone.model.named_parameters() if parameter.requires_grad}
    assert "1.weight" in trained
    assert not any("conv" in name or name.startswith("0.") for name in trained)


def test_backbone_freeze_keeps_weights_and_statistics_in_training() -> None:
    backbone = Backbone("test_resnet", 64, IMAGENET)
    backbone.freeze()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    outer = torch.nn.Sequential(backbone, torch.nn.Linear(backbone.width, 2)).train()
    outer(torch.rand(4, 3, 64, 64)).sum().backward()
    assert not [name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])]
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert outer[1].weight.grad is not None


def test_create_timm_model_names_near_models_for_an_unknown_one() -> None:
    with pytest.raises(
        ConfigError, match=r"timm model 'resnet81' is unknown\. Did you mean 'resnet\d+'\? Known: .*resnet18"
    ):
        create_timm_model("resnet81", 64)
    with pytest.raises(ConfigError, match="timm model 'zebra' is unknown"):
        create_timm_model("zebra", 64)


def test_statistics_are_those_of_the_published_weights() -> None:
    assert statistics("resnet18") == IMAGENET
    assert statistics("vit_tiny_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
