"""Backbones: strides and channels of their maps, and timm's own keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.errors import ConfigError
from pipeline.models.backbone import Backbone, create_backbone, statistics


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "resnet10t"])
def test_backbone_gives_maps_of_strides_8_16_and_32(name: str) -> None:
    backbone = Backbone(name, 64).eval()
    assert backbone.strides == [8, 16, 32]
    maps = backbone(torch.rand(2, 3, 64, 64))
    assert [tuple(each.shape) for each in maps] == [
        (2, channels, 64 // stride, 64 // stride)
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]


def test_backbone_maps_are_timms_c3_to_c5() -> None:
    torch.manual_seed(0)
    backbone = Backbone("test_resnet", 64).eval()
    reference = timm.create_model("test_resnet", features_only=True, out_indices=(2, 3, 4)).eval()
    reference.load_state_dict(backbone.model.state_dict(), strict=False)
    images = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(backbone(images), reference(images), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "lowered"), [("test_resnet", True), ("test_efficientnet", False)])
def test_backbone_with_grouped_convolutions_trains_in_float32_on_the_cpu(name: str, lowered: bool) -> None:
    backbone, images = Backbone(name, 64), torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        trained = {each.dtype for each in backbone.train()(images)}
        tested = {each.dtype for each in backbone.eval()(images)}
    assert (torch.bfloat16 in trained) == lowered
    assert torch.bfloat16 in tested


@pytest.mark.parametrize(("name", "size"), [("test_vit", 64), ("test_vit", 96), ("vit_tiny_patch16_224", 64)])
def test_backbone_of_a_plain_transformer_gives_one_map_at_any_size(name: str, size: int) -> None:
    backbone = Backbone(name, size).eval()
    assert backbone.strides == [16]
    (only_map,) = backbone(torch.rand(1, 3, size, size))
    assert only_map.shape == (1, backbone.channels[0], size // 16, size // 16)


def test_backbone_weights_load_into_timm(tmp_path: Path) -> None:
    torch.manual_seed(3)
    backbone = Backbone("test_resnet", 64).eval()
    save_file(backbone.model.state_dict(), tmp_path / "backbone.safetensors")
    path = str(tmp_path / "backbone.safetensors")
    again = timm.create_model("test_resnet", num_classes=0, checkpoint_path=path).eval()
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again(images), backbone.model(images))


def test_create_backbone_names_near_models_for_an_unknown_one() -> None:
    with pytest.raises(
        ConfigError, match=r"timm model 'resnet81' is unknown\. Did you mean 'resnet\d+'\? Known: .*resnet18"
    ):
        create_backbone("resnet81", 64)
    with pytest.raises(ConfigError, match="timm model 'zebra' is unknown"):
        create_backbone("zebra", 64)


def test_statistics_are_those_of_the_published_weights() -> None:
    assert statistics("resnet18") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert statistics("vit_tiny_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
