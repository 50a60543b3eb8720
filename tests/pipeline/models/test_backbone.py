"""Backbones: strides and channels as they are, timm's own keys, and weights that are checked before they are used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.errors import ConfigError, DataError
from pipeline.models.backbone import (
    Backbone,
    check_backbone,
    create,
    load_weights,
    match,
    read_weights,
    resampled,
    size_options,
    statistics,
)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "resnet10t"])
def test_a_hierarchical_backbone_gives_strides_8_16_and_32(name: str) -> None:
    backbone = Backbone(name, 64).eval()
    assert backbone.strides == [8, 16, 32]
    maps = backbone(torch.rand(2, 3, 64, 64))
    assert [tuple(found.shape) for found in maps] == [
        (2, channels, 64 // stride, 64 // stride)
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]


def test_the_maps_are_those_that_timm_calls_c3_to_c5() -> None:
    torch.manual_seed(0)
    backbone = Backbone("test_resnet", 64).eval()
    reference = timm.create_model("test_resnet", features_only=True, out_indices=(2, 3, 4)).eval()
    reference.load_state_dict(backbone.model.state_dict(), strict=False)
    images = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(backbone(images), reference(images), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "lowered"), [("test_resnet", True), ("test_efficientnet", False)])
def test_in_training_on_the_cpu_grouped_convolutions_keep_a_backbone_in_float32(name: str, lowered: bool) -> None:
    backbone, images = Backbone(name, 64), torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        trained = {found.dtype for found in backbone.train()(images)}
        tested = {found.dtype for found in backbone.eval()(images)}
    assert (torch.bfloat16 in trained) == lowered
    assert torch.bfloat16 in tested


@pytest.mark.parametrize(("name", "size"), [("test_vit", 64), ("test_vit", 96), ("vit_tiny_patch16_224", 64)])
def test_a_plain_transformer_gives_its_one_map_at_any_size(name: str, size: int) -> None:
    backbone = Backbone(name, size).eval()
    assert backbone.strides == [16]
    (only,) = backbone(torch.rand(1, 3, size, size))
    assert only.shape == (1, backbone.channels[0], size // 16, size // 16)


def test_what_is_exported_loads_into_timm(tmp_path: Path) -> None:
    torch.manual_seed(3)
    backbone = Backbone("test_resnet", 64).eval()
    save_file(backbone.model.state_dict(), tmp_path / "backbone.safetensors")
    path = str(tmp_path / "backbone.safetensors")
    again = timm.create_model("test_resnet", num_classes=0, checkpoint_path=path).eval()
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again(images), backbone.model(images))


def test_an_unknown_backbone_is_refused_with_near_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"timm model 'resnet81' is unknown\. Did you mean 'resnet\d+'\? Known: .*resnet18"
    ):
        create("resnet81", 64)
    with pytest.raises(ConfigError, match="timm model 'zebra' is unknown"):
        create("zebra", 64)


def test_statistics_are_those_the_weights_were_trained_with() -> None:
    assert statistics("resnet18") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert statistics("vit_tiny_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def filled(value: float, **more: Any) -> dict[str, torch.Tensor]:
    """A state for `test_resnet` without classifier, every number the same."""
    state = create("test_resnet", 64).state_dict()
    return {**{name: torch.full_like(tensor, value) for name, tensor in state.items()}, **more}


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model"])
def test_weights_are_read_from_any_usual_file(tmp_path: Path, form: str) -> None:
    state, path = filled(0.5), tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save(state if form == "plain" else {form: wrapped, "epoch": 3}, path)
    assert read_weights(path).keys() == state.keys()
    model = create("test_resnet", 64)
    load_weights(model, "test_resnet", str(path))
    assert all(bool((tensor == torch.full_like(tensor, 0.5)).all()) for tensor in model.state_dict().values())


def test_a_classifier_in_the_file_is_left_out() -> None:
    model = create("test_resnet", 64)
    chosen = match(model, filled(1.0, **{"fc.weight": torch.ones(10, 96), "fc.bias": torch.ones(10)}), "w.pth")
    assert chosen.keys() == model.state_dict().keys()


def test_tensors_of_other_names_are_taken_in_order() -> None:
    model, state = create("test_resnet", 64), filled(0.25)
    kept = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    foreign = {f"layer{number}": tensor + number for number, tensor in enumerate(kept)}
    chosen = match(model, {**foreign, "classifier": torch.ones(10, 96)}, "w.pth")
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(chosen[name], foreign[f"layer{number}"]) for number, name in enumerate(names))
    model.load_state_dict(chosen)


def test_weights_of_another_model_are_refused_with_the_first_tensor_that_does_not_fit() -> None:
    model = create("test_resnet", 64)
    with pytest.raises(DataError, match=r"w\.pth: not weights of this model: .* tensors missing, first '"):
        match(model, {"a": torch.ones(1)}, "w.pth")
    wrong = {**filled(1.0), "conv1.0.weight": torch.ones(3, 3)}
    with pytest.raises(DataError, match=r"w\.pth: conv1\.0\.weight is \(3, 3\), the model needs \("):
        match(model, wrong, "w.pth")


def test_weights_of_a_deeper_model_are_not_cut_short() -> None:
    deeper = filled(1.0, **{"layer1.7.bn1.weight": torch.ones(3), "layer1.7.bn1.bias": torch.ones(3)})
    with pytest.raises(DataError, match=r"w\.pth: .* its blocks lack 2 tensors, first 'layer1\.7\.bn1\.weight'"):
        match(create("test_resnet", 64), deeper, "w.pth")


@pytest.mark.parametrize("blocks", [7, 8])
def test_weights_of_a_deeper_model_that_names_them_otherwise_are_not_cut_short(blocks: int) -> None:
    deeper = timm.create_model("test_vit", depth=blocks, num_classes=10).state_dict()
    foreign = {f"net.{name}": tensor for name, tensor in deeper.items()}
    with pytest.raises(
        DataError, match=r"w\.pth: not weights of this model: its blocks lack \d+ tensors, first 'net\."
    ):
        match(timm.create_model("test_vit", num_classes=0), foreign, "w.pth")


def test_a_classifier_of_a_model_that_names_its_tensors_otherwise_is_left_out() -> None:
    model, published = create("test_resnet", 64), timm.create_model("test_resnet", num_classes=10).state_dict()
    chosen = match(model, {f"net.{name}": tensor for name, tensor in published.items()}, "w.pth")
    own = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(chosen[name], published[name]) for name in own)


def test_what_timm_cannot_convert_is_not_weights_of_the_model() -> None:
    """Its filter looks for a block that the model does not have."""
    model = create("swin_tiny_patch4_window7_224", 224)
    name = "layers.2.blocks.9.attn.relative_position_bias_table"
    with pytest.raises(DataError, match=r"w\.pth: not weights of this model, timm can't use them \(.*9"):
        resampled(model, {**model.state_dict(), name: torch.ones(169, 12)}, "w.pth")


@pytest.mark.parametrize("form", ["safetensors", "zip", "old"])
@pytest.mark.parametrize(("name", "size"), [("test_resnet", 64), ("test_vit", 64)])
def test_what_loads_is_what_the_check_lets_pass(tmp_path: Path, form: str, name: str, size: int) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    for weights, fits in ((name, True), ("test_efficientnet", False)):
        state = timm.create_model(weights, num_classes=7).state_dict()
        if form == "safetensors":
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
        if fits:
            check_backbone(name, size, str(path))
            load_weights(create(name, size), name, str(path))
            continue
        says = rf"{path}, for a '{name}': .* Name weights of a '{name}', or the model that these are of\."
        with pytest.raises(ConfigError, match=says):
            check_backbone(name, size, str(path))
        with pytest.raises(ConfigError, match=says):
            load_weights(create(name, size), name, str(path))


def test_what_is_published_elsewhere_is_left_alone() -> None:
    check_backbone("test_resnet", 64, "timm")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_weights_of_another_input_size_are_resampled(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = timm.create_model(name, num_classes=7)
    save_file(published.state_dict(), tmp_path / "w.safetensors")
    model = create(name, 64)
    load_weights(model, name, str(tmp_path / "w.safetensors"))
    own, theirs = model.state_dict(), published.state_dict()
    same = [key for key in own if own[key].shape == theirs[key].shape]
    assert all(torch.equal(own[key], theirs[key]) for key in same)
    assert set(own) - set(same) == ({"pos_embed"} if name == "test_vit" else set())
    again = timm.create_model(name, num_classes=0, **size_options(name, 64))
    again.load_state_dict(own)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1"])
def test_a_damaged_safetensors_file_is_a_data_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"w\.safetensors: not readable as safetensors"):
        read_weights(tmp_path / "w.safetensors")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pth: no such weights file"):
        read_weights(tmp_path / "none.pth")


class Harmful:
    """Unpickled by a careless reader, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Harmful(tmp_path / "harm")}, tmp_path / "w.pth")
    assert b"mkdir" in (tmp_path / "w.pth").read_bytes()
    with pytest.raises(Exception, match="Weights only load failed"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "harm").exists()
