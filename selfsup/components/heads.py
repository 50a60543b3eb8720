"""Projection heads, and networks that follow another one by a moving average."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.components.kmeans import products


def projector(widths: Sequence[int], norm: bool = False) -> nn.Sequential:
    """A perceptron of these widths with ReLU between its layers, behind batch norms if `norm`."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        is_last = number == len(widths) - 2
        layers.append(nn.Linear(before, after, bias=is_last or not norm))
        if not is_last:
            layers += [*([nn.BatchNorm1d(after)] if norm else []), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class MomentumEncoder(nn.Module):
    """A copy of a network that has no gradient and follows it: w <- m w + (1 - m) w', buffers as they are.

    `catch_up` does so once for each step, in however many pieces or attempts the step's batch comes.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._last = -1  # no part of the state: states lie between steps

    def forward(self, *given: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.network(*given)
        return found

    @torch.no_grad()
    def catch_up(self, network: nn.Module, momentum: float, step: int) -> None:
        """Move towards the network it is a copy of, if that was not done in this step."""
        if self._last == step:
            return
        self._last = step
        for mine, theirs in zip(self.network.parameters(), network.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - momentum)


def cosine_momentum(start: float, progress: float) -> float:
    """A momentum that rises from `start` to 1 by a cosine (BYOL, eq. 4; DINO)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


class Prototypes(nn.Module):
    """Scores of embeddings (B, D) by prototypes, both of unit length: (B, K) cosines."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, embeddings: Tensor, is_frozen: bool = False) -> Tensor:
        """`is_frozen`: without a gradient for the prototypes."""
        weight = self.weight.detach() if is_frozen else self.weight
        return products(F.normalize(embeddings.float(), dim=1), F.normalize(weight, dim=1))


class DistillationHead(nn.Module):
    """DINO's head: a perceptron, a bottleneck of unit length, and a layer of `outputs` directions of unit length."""

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.perceptron = nn.Sequential(
            *(
                layer
                for before, after in itertools.pairwise(widths[:-1])
                for layer in (nn.Linear(before, after), nn.GELU())
            ),
            nn.Linear(widths[-2], widths[-1]),
        )
        self.directions = Prototypes(widths[-1], outputs)

    def forward(self, features: Tensor, is_frozen: bool = False) -> Tensor:
        """`is_frozen`: without a gradient for the directions."""
        scores: Tensor = self.directions(self.perceptron(features), is_frozen)
        return scores
