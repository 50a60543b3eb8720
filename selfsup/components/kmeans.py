"""Spherical k-means on unit vectors, and the dot products that it and the losses compare vectors by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.precision import exact_products

CHUNK = 16_384
"""Points that are compared with all centroids at once."""


def dot_products(a: Tensor, b: Tensor) -> Tensor:
    """Return a b^T for (..., N, D) and (..., M, D): (..., N, M) float32, also under autocast."""
    # softmaxes over cosines need the digits that these would round away
    with torch.autocast(a.device.type, enabled=False), exact_products():
        return a.float() @ b.float().mT


def default_cluster_count(images: int) -> int:
    """Return how many clusters or prototypes suit a set: the papers' 3,000, or a tenth of its images if less."""
    return max(2, min(3000, images // 10))


def spherical_kmeans(points: Tensor, count: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Cluster points (N, D) of unit length; return `count` centroids (K, D) of unit length and assignments (N,).

    It starts from randomly drawn points, and a centroid without points moves to one. The sum of the points' cosines
    with their centroids does not fall from one iteration to the next.
    """
    centroids = points[torch.randint(len(points), (count,), device=points.device)]
    if len(points) >= count:
        centroids = points[torch.randperm(len(points), device=points.device)[:count]]
    assignments = nearest_centroid(points, centroids)
    for _ in range(iterations):
        sums = torch.zeros_like(centroids).index_add_(0, assignments, points)
        sizes = torch.bincount(assignments, minlength=count)
        empty = sizes == 0
        centroids = F.normalize(sums, dim=1)
        centroids[empty] = points[torch.randint(len(points), (int(empty.sum()),), device=points.device)]
        assignments = nearest_centroid(points, centroids)
    return centroids, assignments


def nearest_centroid(points: Tensor, centroids: Tensor) -> Tensor:
    """Return for each point (N, D) the number of the centroid (K, D) with the largest cosine: (N,) int64."""
    return torch.cat([dot_products(chunk, centroids).argmax(dim=1) for chunk in points.split(CHUNK)])
