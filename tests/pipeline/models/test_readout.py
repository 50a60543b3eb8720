"""The readout over timm's families: the vector is timm's own, and what is read of a model trains all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models import readout
from pipeline.models.backbone import Backbone
from pipeline.models.readout import ReadoutInfo, read, readout_info, try_training_step, untrained_parameters
from pipeline.models.timm_models import create_timm_model, img_size_options, statistics
from pipeline.stores.labels import LabelSpace
from tasks.network import Network, NetworkConfig

HIERARCHICAL = {
    "resnet10t": 64,
    "regnetx_002": 64,
    "tf_efficientnet_lite0": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_035": 64,
    "convnext_atto": 64,
    "swin_s3_tiny_224": 128,
    "maxvit_pico_rw_256": 128,
    "efficientvit_b0": 64,
}
"""Models with maps of stride 8, 16 and 32, with an image size for them."""
PLAIN = {
    "vit_tiny_patch16_224": 64,
    "deit3_small_patch16_224": 64,
    "vit_small_patch14_reg4_dinov2": 224,
    "eva02_tiny_patch14_224": 224,
    "test_vit2": 64,
    "test_vit3": 160,
}
"""Plain transformers: with a class token, with registers, with pooled tokens, with attention pooling."""
SLOW = {
    "efficientnet_b0": 64,
    "convnext_tiny_hnf": 64,
    "swinv2_tiny_window8_256": 256,
    "maxvit_tiny_tf_224": 224,
    "densenet121": 64,
    "hiera_tiny_224": 224,
    "deit_tiny_distilled_patch16_224": 64,
    "vit_small_patch16_dinov3": 64,
    "vit_base_patch32_siglip_256": 256,
    "vit_base_patch16_siglip_gap_224": 64,
    "cait_xxs24_224": 224,
}
SIZES = HIERARCHICAL | PLAIN | SLOW
FAMILIES = [*HIERARCHICAL, *PLAIN, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
ONLY_BY_VECTOR = {"test_vit3": "attn_pool", "vit_base_patch32_siglip_256": "attn_pool", "hiera_tiny_224": "head"}
"""Modules that heads on maps alone don't train; docs/explanation/decisions.md says why."""
MEAN_OF_MAP = {"resnet10t", "regnetx_002", "tf_efficientnet_lite0", "efficientnet_b0", "densenet121"}
MEAN_OF_MAP |= {"swin_s3_tiny_224", "swinv2_tiny_window8_256", "maxvit_pico_rw_256", "convnext_tiny_hnf"}
MEAN_OF_MAP |= {"vit_base_patch16_siglip_gap_224", "vit_small_patch16_dinov3"}
"""Models whose vector is the mean over the cells of the last map."""


def make(name: str) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(name, SIZES[name], statistics(name))
    for parameter in backbone.model.parameters():  # timm starts some scales at 0, which hides what lies behind them
        torch.nn.init.normal_(parameter, std=0.05) if not parameter.any() else None
    return backbone


@pytest.mark.parametrize("name", FAMILIES)
def test_readout_gives_the_vector_of_the_exported_model(name: str, tmp_path: Path) -> None:
    backbone, images = make(name).eval(), torch.rand(2, 3, SIZES[name], SIZES[name])
    file = tmp_path / "backbone.safetensors"
    save_file(backbone.model.state_dict(), file)
    options = img_size_options(name, SIZES[name])
    exported = timm.create_model(name, num_classes=0, checkpoint_path=str(file), **options).eval()
    with torch.inference_mode():
        vector, maps = backbone.readout(images)
        expected = exported(backbone.normalize(images))
        assert torch.equal(backbone(images), expected), "what stages and probes read"
    torch.testing.assert_close(vector, expected)  # what the heads read
    assert vector.shape == (2, backbone.width)
    sides = [SIZES[name] // stride for stride in backbone.strides]
    assert [tuple(level.shape[1:]) for level in maps] == [
        (channels, side, side) for channels, side in zip(backbone.channels, sides, strict=True)
    ]
    assert backbone.strides == (8, 16, 32) if len(backbone.strides) > 1 else len(maps) == 1
    assert backbone.strides == (8, 16, 32) or name not in HIERARCHICAL
    mean = maps[-1].mean(dim=(2, 3))
    assert mean.shape == vector.shape
    assert (float((mean - vector).norm() / vector.norm()) < 1e-4) == (name in MEAN_OF_MAP)


def loss(network: Network, heads: list[str], size: int) -> Tensor:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    targets = {
        "kind": {"probs": torch.tensor([[0.2, 0.8], [1.0, 0.0]])},
        "depth": {"depth": torch.rand(2, size // 4, size // 4) + 0.5},
    }
    rows = torch.arange(2)
    losses = network.losses(images, {head: {"rows": rows, "target": targets[head]} for head in heads})
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("heads", [["kind", "depth"], ["kind"], ["depth"]], ids="-".join)
@pytest.mark.parametrize("name", FAMILIES)
def test_heads_train_every_parameter_of_the_exported_backbone(name: str, heads: list[str]) -> None:
    spaces = {"kind": LabelSpace("classification", ("a", "b")), "depth": LabelSpace("depth")}
    shown = {head: spaces[head].to_json() for head in heads}
    network = Network(NetworkConfig(backbone=name, image_size=SIZES[name], width=8, heads=shown)).train()
    loss(network, heads, SIZES[name]).backward()
    missed = {part for part, tensor in network.backbone.model.named_parameters() if tensor.grad is None}
    assert missed == set(network.untrained_parameters())
    expected = {ONLY_BY_VECTOR[name]} if name in ONLY_BY_VECTOR and heads == ["depth"] else set()
    assert {part.partition(".")[0] for part in missed} == expected


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_read_gives_each_cell_the_vector_it_has_alone(name: str) -> None:
    model: Any = make(name).eval().model
    side = SIZES[name]
    images = torch.rand(2, 3, side, 2 * side if side == 64 else side)
    with torch.inference_mode():
        (final, _), last = (
            model.forward_intermediates(images),
            read(model, images, readout_info(name, side).indices).maps[-1],
        )
        cells = final if getattr(model, "output_fmt", "") == "NHWC" else final.permute(0, 2, 3, 1)
        assert last.permute(0, 2, 3, 1).shape[:3] == cells.shape[:3]
        for row in range(last.shape[2]):
            for column in range(last.shape[3]):
                alone = cells[:, row : row + 1, column : column + 1]
                vector = model.forward_head(alone if cells is final else alone.permute(0, 3, 1, 2))
                torch.testing.assert_close(last[:, :, row, column], vector)


@pytest.mark.parametrize("name", PLAIN)
def test_read_orders_tokens_by_rows(name: str) -> None:
    model: Any = make(name).eval().model
    side = SIZES[name]
    marked = torch.zeros(1, 3, side, side)
    marked[:, :, side // 2 :, : side // 2] = torch.rand(3, side - side // 2, side // 2)
    with torch.inference_mode():
        before, after = (
            read(model, images, readout_info(name, side).indices).maps[0]
            for images in (torch.zeros_like(marked), marked)
        )
    change = (before - after).abs().sum(dim=(0, 1))
    middle = change.shape[0] // 2
    quarters = [part.mean() for half in change.tensor_split([middle]) for part in half.tensor_split([middle], dim=1)]
    assert int(torch.stack(quarters).argmax()) == 2, "the lower left one"


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small_035", "efficientvit_b0", "resnet10t"])
def test_read_takes_statistics_from_the_vectors_alone(name: str) -> None:
    first, second = make(name).train(), make(name).train()
    images = torch.rand(4, 3, 64, 64)
    first.readout(images)
    second(images)
    assert all(module.training for module in first.model.modules())
    for (part, one), other in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=part)


@pytest.mark.parametrize("name", ["efficientvit_m0", "resnet10t", "test_vit", "davit_tiny"])
def test_create_timm_model_drops_paths_where_there_are_no_batch_norms(name: str) -> None:
    with torch.device("meta"):
        model = create_timm_model(name, 224, drop_path=0.2)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert (max(rates, default=0) == pytest.approx(0.2)) == (name in ("test_vit", "davit_tiny"))


class Untrainable(nn.Module):
    """A model whose features are fine, but which fails in the pass named by `fails`."""

    feature_info: ClassVar = [{"reduction": 32, "num_chs": 4}]

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.fails, self.layer = fails, nn.Conv2d(3, 4, 32, 32)

    def forward_intermediates(self, images: torch.Tensor, indices: list[int]) -> Any:
        if self.training and self.fails == "forward":
            raise ZeroDivisionError("no step")
        found = self.layer(images)
        if self.fails == "backward":
            found = found.sigmoid()
            with torch.no_grad():
                found.mul_(2)
        if self.fails == "memory":
            raise MemoryError
        return found, [found]

    def forward_head(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean((2, 3))


@pytest.mark.parametrize(("fails", "says"), [("forward", "no step"), ("backward", "modified by an inplace operation")])
def test_try_training_step_refuses_a_model_that_fails_in_a_step(
    fails: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readout, "create_timm_model", lambda *_, **__: Untrainable(fails))
    with pytest.raises(ConfigError, match=rf"{fails!r} can't be trained with 2 images of 64 x 64 .*{says}.*resnet50"):
        try_training_step(fails, 64, 2, "cpu")


def test_try_training_step_takes_no_shortage_for_a_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "readout_info", lambda *_: ReadoutInfo(4, (32,), (4,), (0,)))
    monkeypatch.setattr(readout, "create_timm_model", lambda *_, **__: Untrainable("memory"))
    with pytest.raises(MemoryError):
        try_training_step("memory", 64, 2, "cpu")


def test_try_training_step_refuses_one_image_where_a_norm_needs_more() -> None:
    try_training_step("test_resnet", 32, 2, "cpu")
    with pytest.raises(ConfigError, match=r"with 1 image of 32 x 32 pixels .*more than 1 value.* Set a larger batch"):
        try_training_step("test_resnet", 32, 1, "cpu")


def test_readout_info_refuses_a_model_without_one_vector_and_one_map() -> None:
    with pytest.raises(ConfigError, match=r"'crossvit_9_240' has no readout .*ends in 2 maps.*resnet50"):
        readout_info("crossvit_9_240", 240)
    with pytest.raises(ConfigError, match=r"'pit_ti_224' has no readout .*1 tokens for 7 x 7 cells"):
        readout_info("pit_ti_224", 224)
    with pytest.raises(ConfigError, match=r"'vit_small_patch14_dinov2' has no readout for images of 64 x 64 pixels"):
        readout_info("vit_small_patch14_dinov2", 64)


def test_untrained_parameters_names_what_lies_between_maps_and_vector() -> None:
    names = untrained_parameters("test_vit3", 160, vector=False, maps=True)
    assert {name.partition(".")[0] for name in names} == {"attn_pool"}
    assert untrained_parameters("test_vit3", 160, vector=True, maps=False) == []
