"""Clusters of directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 16_384
"""Points compared with all centres at once."""


def fitting_count(images: int) -> int:
    """Clusters, or prototypes, for so many images: the papers' 3,000, or a tenth of the images, if those are fewer."""
    return max(2, min(3000, images // 10))


def spherical_kmeans(points: Tensor, count: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Points (N, D) of unit length -> `count` centres (K, D) of unit length, and the centre of each point (N,).

    The sum of the points' cosines with their centres does not fall from one iteration to the next. It starts from
    points drawn at random; a centre that nobody is near to moves to a point drawn at random.
    """
    centres = points[torch.randint(len(points), (count,), device=points.device)]
    if len(points) >= count:
        centres = points[torch.randperm(len(points), device=points.device)[:count]]
    assigned = nearest(points, centres)
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, assigned, points)
        sizes = torch.bincount(assigned, minlength=count)
        empty = sizes == 0
        centres = F.normalize(sums, dim=1)
        centres[empty] = points[torch.randint(len(points), (int(empty.sum()),), device=points.device)]
        assigned = nearest(points, centres)
    return centres, assigned


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """For each point the centre with the largest cosine."""
    return torch.cat([products(rows, centres).argmax(dim=1) for rows in points.split(ROWS)])


def products(one: Tensor, other: Tensor) -> Tensor:
    """(N, D) and (M, D) -> (N, M), each row of the one times each of the other: in float32, whatever comes in, and also
    under autocast, which would round what softmaxes over cosines live on.
    """
    with torch.autocast(one.device.type, enabled=False):
        return one.float() @ other.float().T
