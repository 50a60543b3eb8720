"""Vectors of other libraries' models: what their trunk, the part before the heads, returns, pooled over the image."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

TRUNKS = ("backbone", "base_model", "vision_model")
"""Where torchvision and transformers keep the trunk: attributes of a model."""
MAPS = ("feature_maps", "encoder_last_hidden_state", "last_hidden_state")
"""Fields of what a trunk of transformers returns that hold features, the first one there counts."""

_caught: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("caught", default=None)
"""The trunk's results in this thread, while they are asked for."""


def tap_trunk(model: nn.Module) -> None:
    """Let `catch_trunk` see what the model's trunk returns; of a model without one it sees nothing."""
    found = (getattr(model, name, None) for name in TRUNKS)
    trunk = next((each for each in found if isinstance(each, nn.Module) and each is not model), None)
    if trunk is not None:
        trunk.register_forward_hook(_keep)


def _keep(trunk: nn.Module, inputs: Any, output: Any) -> None:
    caught = _caught.get()
    if caught is not None:
        caught.append(output)


@contextlib.contextmanager
def catch_trunk() -> Iterator[list[Any]]:
    """Yield a list to which tapped trunks add what they return in this thread."""
    caught: list[Any] = []
    token = _caught.set(caught)
    try:
        yield caught
    finally:
        _caught.reset(token)


def pool_features(output: Any) -> Tensor | None:
    """Return vectors (B, D) of what a trunk returned: means over space of its maps, concatenated; None if it has none.

    Maps are (B, C, h, w), or tokens (B, N, C).
    """
    if isinstance(output, Mapping):
        named = [output[name] for name in MAPS if output.get(name) is not None]
        output = named[0] if named else list(output.values())
    maps = [output] if isinstance(output, Tensor) else output
    if not isinstance(maps, list | tuple) or not all(isinstance(each, Tensor) and each.ndim in (3, 4) for each in maps):
        return None
    return torch.cat([each.flatten(2).mean(2) if each.ndim == 4 else each.mean(1) for each in maps], dim=1)
