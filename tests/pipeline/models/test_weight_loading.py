"""Pretrained weights: read from any usual file, and checked against the model before they are used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.errors import ConfigError, DataError
from pipeline.models.timm_models import create_timm_model, img_size_options, statistics
from pipeline.models.weight_loading import (
    adapt_weights,
    check_backbone,
    check_classifier,
    check_state,
    load_weights,
    match_weights,
    read_weights,
)


def filled(value: float, **more: Any) -> dict[str, torch.Tensor]:
    """Return a state for `test_resnet` without classifier, every number the same."""
    state = create_timm_model("test_resnet", 64).state_dict()
    return {**{name: torch.full_like(tensor, value) for name, tensor in state.items()}, **more}


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", "teacher", "model_ema"])
def test_read_weights_reads_any_usual_file(tmp_path: Path, form: str) -> None:
    state, path = filled(0.5), tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save(state if form == "plain" else {form: wrapped, "epoch": 3}, path)
    assert read_weights(path).keys() == state.keys()
    model = create_timm_model("test_resnet", 64)
    load_weights(model, "test_resnet", str(path))
    assert all(bool((tensor == torch.full_like(tensor, 0.5)).all()) for tensor in model.state_dict().values())


def test_match_weights_leaves_out_a_classifier() -> None:
    model = create_timm_model("test_resnet", 64)
    chosen = match_weights(model, filled(1.0, **{"fc.weight": torch.ones(10, 96), "fc.bias": torch.ones(10)}), "w.pth")
    assert chosen.keys() == model.state_dict().keys()


def test_match_weights_takes_tensors_of_other_names_in_order() -> None:
    model, state = create_timm_model("test_resnet", 64), filled(0.25)
    kept = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    foreign = {f"layer{number}": tensor + number for number, tensor in enumerate(kept)}
    chosen = match_weights(model, {**foreign, "classifier": torch.ones(10, 96)}, "w.pth")
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(chosen[name], foreign[f"layer{number}"]) for number, name in enumerate(names))
    model.load_state_dict(chosen)


def test_match_weights_refuses_another_model_naming_the_first_tensor() -> None:
    model = create_timm_model("test_resnet", 64)
    with pytest.raises(DataError, match=r"w\.pth: not weights of this model: .* tensors missing, first '"):
        match_weights(model, {"a": torch.ones(1)}, "w.pth")
    wrong = {**filled(1.0), "conv1.0.weight": torch.ones(3, 3)}
    with pytest.raises(DataError, match=r"w\.pth: conv1\.0\.weight is \(3, 3\), the model needs \("):
        match_weights(model, wrong, "w.pth")


def test_match_weights_does_not_cut_a_deeper_model_short() -> None:
    deeper = filled(1.0, **{"layer1.7.bn1.weight": torch.ones(3), "layer1.7.bn1.bias": torch.ones(3)})
    with pytest.raises(DataError, match=r"w\.pth: .* its blocks lack 2 tensors, first 'layer1\.7\.bn1\.weight'"):
        match_weights(create_timm_model("test_resnet", 64), deeper, "w.pth")


@pytest.mark.parametrize("blocks", [7, 8])
def test_match_weights_does_not_cut_a_deeper_model_of_other_names_short(blocks: int) -> None:
    deeper = timm.create_model("test_vit", depth=blocks, num_classes=10).state_dict()
    foreign = {f"net.{name}": tensor for name, tensor in deeper.items()}
    with pytest.raises(
        DataError, match=r"w\.pth: not weights of this model: its blocks lack \d+ tensors, first 'net\."
    ):
        match_weights(timm.create_model("test_vit", num_classes=0), foreign, "w.pth")


def test_match_weights_leaves_out_a_classifier_among_other_names() -> None:
    model = create_timm_model("test_resnet", 64)
    published = timm.create_model("test_resnet", num_classes=10).state_dict()
    chosen = match_weights(model, {f"net.{name}": tensor for name, tensor in published.items()}, "w.pth")
    own = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(chosen[name], published[name]) for name in own)


def test_adapt_weights_refuses_what_timm_cannot_convert() -> None:
    """Its filter looks for a block that the model does not have."""
    model = create_timm_model("swin_tiny_patch4_window7_224", 224)
    name = "layers.2.blocks.9.attn.relative_position_bias_table"
    with pytest.raises(DataError, match=r"w\.pth: not weights of this model, timm can't use them \(.*9"):
        adapt_weights(model, {**model.state_dict(), name: torch.ones(169, 12)}, "w.pth")


@pytest.mark.parametrize("form", ["safetensors", "zip", "old"])
@pytest.mark.parametrize(("name", "size"), [("test_resnet", 64), ("test_vit", 64)])
def test_check_backbone_passes_what_load_weights_loads(tmp_path: Path, form: str, name: str, size: int) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    for weights, fits in ((name, True), ("test_efficientnet", False)):
        state = timm.create_model(weights, num_classes=7).state_dict()
        if form == "safetensors":
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
        if fits:
            check_backbone(name, size, str(path))
            load_weights(create_timm_model(name, size), name, str(path))
            continue
        says = rf"{path}, for a '{name}': .* Name weights of a '{name}', or the model that these are of\."
        with pytest.raises(ConfigError, match=says):
            check_backbone(name, size, str(path))
        with pytest.raises(ConfigError, match=says):
            load_weights(create_timm_model(name, size), name, str(path))


def test_check_backbone_does_not_look_for_published_weights() -> None:
    check_backbone("test_resnet", 64, "timm")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_load_weights_resamples_those_of_another_input_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = timm.create_model(name, num_classes=7)
    save_file(published.state_dict(), tmp_path / "w.safetensors")
    model = create_timm_model(name, 64)
    load_weights(model, name, str(tmp_path / "w.safetensors"))
    own, theirs = model.state_dict(), published.state_dict()
    same = [key for key in own if own[key].shape == theirs[key].shape]
    assert all(torch.equal(own[key], theirs[key]) for key in same)
    assert set(own) - set(same) == ({"pos_embed"} if name == "test_vit" else set())
    again = timm.create_model(name, num_classes=0, **img_size_options(name, 64))
    again.load_state_dict(own)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1"])
def test_read_weights_names_a_damaged_safetensors_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"w\.safetensors: not readable as safetensors"):
        read_weights(tmp_path / "w.safetensors")


def test_read_weights_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pth: no such weights file"):
        read_weights(tmp_path / "none.pth")


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_read_weights_executes_nothing_in_a_file(tmp_path: Path) -> None:
    torch.save({"state_dict": Harmful(tmp_path / "harm")}, tmp_path / "w.pth")
    assert b"mkdir" in (tmp_path / "w.pth").read_bytes()
    with pytest.raises(
        DataError, match=r"it would call posix\.mkdir, which is no tensor; save the state dict alone"
    ) as e:
        read_weights(tmp_path / "w.pth")
    assert "weights_only" not in str(e.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_match_weights_refuses_weights_that_are_not_finite(value: float, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) if tensor.ndim else tensor for name, tensor in filled(1.0).items()}
    match_weights(create_timm_model("test_resnet", 64), weights, "w.pth")
    weights["conv1.3.weight"][0, 0, 0, 0] = weights["bn1.weight"][0] = value
    with pytest.raises(ConfigError, match=r"w\.pth: 2 of \d+ tensors hold NaN or infinite numbers, first 'conv1\.3\.w"):
        match_weights(create_timm_model("test_resnet", 64), weights, "w.pth")
    unused = {**filled(1.0), "fc.weight": torch.full((10, 96), value)}
    match_weights(create_timm_model("test_resnet", 64), unused, "w.pth")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_match_weights_refuses_integers_for_floats(dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in filled(1.0).items()}
    with pytest.raises(
        ConfigError, match=rf"w\.pth: conv1\.0\.weight is of {dtype}, and the model's of torch\.float32"
    ):
        match_weights(create_timm_model("test_resnet", 64), weights, "w.pth")


def test_read_weights_prefers_averaged_weights(tmp_path: Path) -> None:
    torch.save({"student": filled(1.0), "teacher": filled(2.0), "model": filled(3.0)}, tmp_path / "w.pth")
    assert all(bool((tensor == 2).all()) for tensor in read_weights(tmp_path / "w.pth").values())


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_match_weights_takes_counters_as_floats(prefix: str) -> None:
    weights = {prefix + name: tensor.half() for name, tensor in filled(1.0).items()}
    model = create_timm_model("test_resnet", 64)
    model.load_state_dict(match_weights(model, weights, "w.pth"))


@pytest.mark.parametrize("what", ["infinite", "quantized"])
def test_check_backbone_and_check_classifier_refuse_what_is_no_start(what: str, tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    bad = {name: tensor / 0 if what == "infinite" else tensor.to(torch.int8) for name, tensor in state.items()}
    save_file(bad, tmp_path / "w.safetensors")
    says = "NaN or infinite" if what == "infinite" else r"torch\.int8"
    with pytest.raises(ConfigError, match=says):
        check_backbone("test_resnet", 64, str(tmp_path / "w.safetensors"))
    with pytest.raises(ConfigError, match=says):
        check_classifier("test_resnet", 7, str(tmp_path / "w.safetensors"))
    with pytest.raises(ConfigError, match=says):
        load_weights(create_timm_model("test_resnet", 64), "test_resnet", str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("more", [{"extra": torch.ones(1)}, {}])
def test_check_state_takes_exactly_the_tensors_of_the_model(more: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state, path = filled(1.0), tmp_path / "model.safetensors"
    save_file(state, path)
    check_state(create_timm_model("test_resnet", 64), path)
    save_file({**state, **more} if more else dict(list(state.items())[1:]), path)
    first = "extra" if more else next(iter(state))
    with pytest.raises(DataError, match=rf"{path}: not weights of this model: 1 tensors are only in .* '{first}'"):
        check_state(create_timm_model("test_resnet", 64), path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.ones(2)], "holds a list; tensors by name"),
        (torch.ones(2), "holds a Tensor; tensors by name"),
        (3, "holds a int; tensors by name"),
    ],
)
def test_read_weights_refuses_what_has_no_names(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(DataError, match=rf"w\.pth: {says}"):
        read_weights(tmp_path / "w.pth")


def test_read_weights_leaves_out_what_is_no_tensor_by_name(tmp_path: Path) -> None:
    torch.save({1: torch.ones(2), "epoch": 3, "a": torch.ones(2)}, tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth")) == ["a"]


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4 and no more"])
def test_read_weights_says_what_a_file_that_torch_did_not_save_is(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(DataError, match=r"w\.pth: .*it is not a whole file that torch\.save wrote: "):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["test_resnet.nope", "test_resnet.r160_in1k ", "test_resnet.", "test_resnet.a.b"])
@pytest.mark.parametrize(
    "check",
    [
        lambda name: check_backbone(name, 64, None),
        lambda name: check_classifier(name, 7, "w.safetensors"),
        lambda name: create_timm_model(name, 64),
        statistics,
    ],
)
def test_check_model_name_lists_the_tags_that_exist(check: Any, name: str) -> None:
    says = rf"timm model '{name}' is unknown.*Known: test_resnet, test_resnet\.r160_in1k\."
    with pytest.raises(ConfigError, match=says):
        check(name)
