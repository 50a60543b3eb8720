"""Gradient checkpointing over timm's families: less is kept for the backward pass, and nothing else changes."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.backbone import Backbone
from pipeline.models.gradient_checkpointing import CheckpointedBlock, checkpoint_blocks
from pipeline.models.readout import try_training_step
from pipeline.models.timm_models import create_timm_model, statistics
from tests.pipeline.models.test_readout import SIZES, SLOW, make

SMALL = 64
"""Side of images, pixels: models that need larger ones are slow."""
CHECKED = [*(pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW or SIZES[name] > SMALL)) for name in SIZES)]
UNKNOWN = "cait_xxs24_224"
"""A model whose blocks timm does not tell by patterns."""


class Pass(NamedTuple):
    """A forward and a backward pass."""

    gradients: dict[str, Tensor | None]
    state: dict[str, Tensor]
    drawn: Tensor
    """Random numbers drawn afterwards."""


def train_pass(backbone: Backbone, autocast: bool = False, views: int = 1) -> Pass:
    """Make a pass in training mode on `views` batches, whose random draws are the same each time."""
    torch.manual_seed(1)
    batches = torch.rand(views, 2, 3, backbone.size, backbone.size)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        readouts = [backbone.readout(images) for images in batches]
    read = [tensor for vector, maps in readouts for tensor in (vector, *maps)]
    torch.stack([tensor.float().square().mean() for tensor in read]).sum().backward()
    gradients = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    return Pass(gradients, backbone.state_dict(), torch.rand(3))


def checkpointed(backbone: Backbone) -> Backbone:
    """Return a copy with gradient checkpointing."""
    other = copy.deepcopy(backbone)
    other.checkpoint_blocks()
    return other


def assert_equal(one: Pass, other: Pass) -> None:
    """Assert that two passes have the same gradients, buffers and random draws, bit for bit and in the same order."""
    assert list(one.gradients) == list(other.gradients)
    assert list(one.state) == list(other.state)
    for name, gradient in one.gradients.items():
        found = other.gradients[name]
        assert (gradient is None) == (found is None), name
        assert gradient is None or found is None or torch.equal(gradient, found), name
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())
    assert torch.equal(one.drawn, other.drawn)


def saved_bytes(backbone: Backbone) -> int:
    """Return the bytes of the tensors, each once and weights apart, that a forward pass keeps for the backward one."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        read = backbone.readout(torch.rand(2, 3, backbone.size, backbone.size))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    for parameter in backbone.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    assert read.vector.requires_grad, "while the graph is there, no address is given twice"
    return sum(storages.values())


@pytest.mark.parametrize("name", CHECKED)
def test_checkpoint_blocks_changes_no_gradient_and_no_state(name: str) -> None:
    plain = make(name).train()
    if name == UNKNOWN:
        with pytest.raises(ConfigError, match=rf"does not tell the blocks of backbone '{UNKNOWN}'.*resnet50"):
            plain.checkpoint_blocks()
        return
    other = checkpointed(plain)
    assert any(isinstance(module, CheckpointedBlock) for module in other.modules())
    assert_equal(train_pass(other), train_pass(plain))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("autocast", [False, True])
def test_checkpoint_blocks_keeps_drop_path_autocast_and_statistics_of_several_views(name: str, autocast: bool) -> None:
    plain = Backbone(name, 32, statistics(name), drop_path=0.5).train()
    assert_equal(train_pass(checkpointed(plain), autocast, views=2), train_pass(plain, autocast, views=2))


def test_checkpoint_blocks_counts_each_batch_once_in_running_statistics() -> None:
    backbone = checkpointed(Backbone("resnet18", 32, statistics("resnet18")).train())
    train_pass(backbone)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms if norm.num_batches_tracked is not None} == {1}
    assert {norm.momentum for norm in norms} == {0.1}


@pytest.mark.parametrize("name", ["resnet50", "vit_tiny_patch16_224"])
def test_checkpoint_blocks_keeps_less_than_half_for_the_backward_pass(name: str) -> None:
    plain = Backbone(name, SMALL, statistics(name)).train()
    assert saved_bytes(checkpointed(plain)) < saved_bytes(plain) / 2


def test_checkpoint_blocks_is_inherited_by_copies_with_weights_of_their_own() -> None:
    plain = Backbone("test_resnet", 32, statistics("test_resnet")).train()
    copied = copy.deepcopy(checkpointed(plain))
    with torch.no_grad():
        for tensor in [*plain.parameters(), *copied.parameters()]:
            tensor.mul_(1.5)
    assert_equal(train_pass(copied), train_pass(plain))


def test_checkpoint_blocks_is_without_effect_in_eval_mode_and_without_gradients() -> None:
    backbone = checkpointed(Backbone("test_resnet", 32, statistics("test_resnet")).train())
    images, calls = torch.rand(2, 3, 32, 32), []
    blocks = [module for module in backbone.modules() if isinstance(module, CheckpointedBlock)]
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    with torch.no_grad():
        backbone(images)
    backbone.eval()(images).sum().backward()
    assert len(calls) == 2 * len(blocks)
    frozen = Backbone("test_resnet", 32, statistics("test_resnet"))
    frozen.freeze()
    frozen.checkpoint_blocks()
    assert not any(isinstance(module, CheckpointedBlock) for module in frozen.modules())


@pytest.mark.parametrize("name", ["vgg11", UNKNOWN])
def test_checkpoint_blocks_refuses_a_model_whose_blocks_are_not_told(name: str) -> None:
    with torch.device("meta"):
        model = create_timm_model(name, 224)
    with pytest.raises(ConfigError, match=rf"gradient_checkpointing: .* backbone '{name}'.*convnext_tiny.*accumulate"):
        checkpoint_blocks(model, name)


def test_try_training_step_tries_gradient_checkpointing() -> None:
    try_training_step("test_resnet", 32, 2, "cpu", True)
    with pytest.raises(ConfigError, match="gradient_checkpointing: "):
        try_training_step(UNKNOWN, SIZES[UNKNOWN], 2, "cpu", True)
