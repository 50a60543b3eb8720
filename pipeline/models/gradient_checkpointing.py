"""Gradient checkpointing: a timm model's blocks are computed again in the backward pass instead of being kept for it.

timm's own switch is not enough: `forward_intermediates` ignores it in several families, and batch norms take the images
into their running statistics twice.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pipeline.errors import ConfigError

EXAMPLES = "resnet50, efficientnet_b0, convnext_tiny, swin_tiny_patch4_window7_224 or vit_small_patch16_224"
"""Models with blocks, for messages."""


class CheckpointedBlock(nn.Module):
    """A block that keeps nothing but its inputs for the backward pass; a base of the block's own class, which follows.

    In eval mode and without gradients it is the block as it was.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        kept = [list(arg) if isinstance(arg, list) else arg for arg in args]  # DenseNet's list grows afterwards
        contexts = lambda: (contextlib.nullcontext(), _settled_statistics(self))  # noqa: E731
        return checkpoint(super().forward, *kept, use_reentrant=False, context_fn=contexts, **kwargs)


def checkpoint_blocks(model: nn.Module, name: str) -> None:
    """Let the blocks of the timm model called `name` be computed again in the backward pass, in training mode.

    Gradients, random draws, running statistics and the names of parameters stay as they are, copies of the model
    included. The memory of activations falls to the inputs of the blocks and what one block keeps.

        model = timm.create_model("resnet50")
        checkpoint_blocks(model, "resnet50")

    Raises ConfigError if timm does not tell the blocks of the model.
    """
    blocks = _blocks(model)
    if not blocks:
        raise ConfigError(
            f"gradient_checkpointing: timm does not tell the blocks of backbone {name!r}; it does those of {EXAMPLES}. "
            "Take such a backbone, or turn gradient_checkpointing off and set more accumulate."
        )
    for block in blocks:
        if not isinstance(block, CheckpointedBlock):
            block.__class__ = type(type(block).__name__, (CheckpointedBlock, type(block)), {})


def _blocks(model: Any) -> list[nn.Module]:
    """Return the blocks of a timm model, the layers to which timm would give learning rates of their own.

    Where these are stages, return the blocks of the stages. A single layer, such as an activation, is none.
    """
    groups = model.group_matcher(coarse=False) if hasattr(model, "group_matcher") else None
    if not isinstance(groups, dict):
        return []
    patterns = [pattern for group, told in groups.items() if group != "stem" for pattern in _patterns(told)]
    found = [module for name, module in model.named_modules() if any(re.fullmatch(each, name) for each in patterns)]
    blocks = [block for module in found for block in getattr(module, "blocks", None) or [module]]
    return [block for block in blocks if any(True for _ in block.children())]


def _patterns(told: str | list[tuple[str, tuple[int, ...] | None]] | None) -> list[str]:
    """Return the patterns of one group; those with a suffix name what timm adds to the layer before."""
    return [told] if isinstance(told, str) else [pattern for pattern, suffix in told or () if suffix is None]


@contextlib.contextmanager
def _settled_statistics(block: nn.Module) -> Iterator[None]:
    """Let batch norms compute as in the first pass, and leave their running statistics as that pass left them."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
