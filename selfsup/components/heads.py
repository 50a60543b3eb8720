"""Heads on top of a backbone (projectors, prototypes, DINO's head), and the momentum encoder."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.components.kmeans import dot_products

RELU = functools.partial(nn.ReLU, inplace=True)


def projector(
    widths: Sequence[int],
    norm: bool = False,
    activation: Callable[[], nn.Module] = RELU,
    norm_last: bool = False,
) -> nn.Sequential:
    """Build an MLP of these widths with activations between its layers, and with `norm` a batch norm before each.

    With `norm_last`, a batch norm also follows the last layer. Layers before a batch norm have no bias.

    projector([2048, 4096, 256], norm=True)  # BYOL's g: Linear, BatchNorm1d, ReLU, Linear
    """
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        is_last = number == len(widths) - 2
        has_norm = norm_last if is_last else norm
        layers += [nn.Linear(inputs, outputs, bias=not has_norm), *([nn.BatchNorm1d(outputs)] if has_norm else [])]
        if not is_last:
            layers.append(activation())
    return nn.Sequential(*layers)


class MomentumEncoder(nn.Module):
    """A copy of a network without gradient, whose parameters are an exponential moving average of the network's.

    Its buffers are its own: batch norms keep the running statistics of this copy's passes, not an average of the
    network's. It drops no paths. Used as MoCo's key encoder, BYOL's target and DINO's teacher:

        target = MomentumEncoder(network)
        target.update_from(network, momentum=0.99, step=views.step)
    """

    def __init__(self, network: nn.Module) -> None:
        from timm.layers import DropPath  # noqa: PLC0415 - a recipe with stages is read without timm

        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        for module in self.network.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        self._last_step = -1  # not saved: training states lie between steps

    def forward(self, *args: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = self.network(*args)
        return output

    @torch.no_grad()
    def update_from(self, network: nn.Module, momentum: float, step: int) -> None:
        """Set w to m w + (1 - m) w' (MoCo, eq. 2), once per step in however many pieces or attempts its batch comes."""
        if self._last_step == step:
            return
        self._last_step = step
        followed = [parameter.detach() for parameter in network.parameters()]
        torch._foreach_lerp_(list(self.network.parameters()), followed, 1 - momentum)


def cosine_momentum(start: float, progress: float) -> float:
    """Return the momentum at `progress` in [0, 1], which rises from `start` to 1 by a cosine (BYOL and DINO)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


class Prototypes(nn.Module):
    """Trainable prototypes of unit length: embeddings (B, D) -> their cosines with K prototypes (B, K), float32."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, embeddings: Tensor, is_frozen: bool = False) -> Tensor:
        """Return the cosines; with `is_frozen`, the prototypes get no gradient."""
        weight = self.weight.detach() if is_frozen else self.weight
        return dot_products(F.normalize(embeddings.float(), dim=1), F.normalize(weight, dim=1))


class DINOHead(nn.Module):
    """DINO's head: an MLP whose last width is the bottleneck, normalised, then a weight-normalised layer."""

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.mlp = projector(widths, activation=nn.GELU)
        self.last_layer = Prototypes(widths[-1], outputs)

    def forward(self, features: Tensor, is_frozen: bool = False) -> Tensor:
        """Return the outputs (B, K); with `is_frozen`, the last layer gets no gradient."""
        outputs: Tensor = self.last_layer(self.mlp(features), is_frozen)
        return outputs
