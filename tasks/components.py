"""Features of a published backbone as principal components, of its vectors or the cells of its maps: the network that
makes them, the loss that learns them, and the metric.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.models.readout import Readout, ReadoutBackbone
from pipeline.stores.rasters import cosines
from tasks.task import Metric, masked_mean


class PrincipalComponents(nn.Module):
    """The principal components of vectors: (..., D) -> (..., K), largest variance first.

    Centered, and divided by one number, so that the variances of all D components have the mean 1.
    """

    center: Tensor
    axes: Tensor

    share: Tensor

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("axes", torch.zeros(count, width))
        self.register_buffer("share", torch.zeros(()))
        """Of the variance of the vectors that it was fitted to: what the K components have."""

    @classmethod
    def fit(cls, vectors: Tensor, count: int) -> Self:
        """Return the first `count` components of vectors (N, D). Raises ValueError if all vectors are the same."""
        exact = vectors.double()
        center = exact.mean(dim=0)
        exact = exact - center
        variances, axes = torch.linalg.eigh(exact.T @ exact / len(exact))
        variances, axes = variances.flip(0).clamp(min=0), axes.flip(1).T
        if not variances.any():
            raise ValueError("all vectors are the same")
        axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()  # eigenvectors have no direction
        fitted = cls(vectors.shape[1], count)
        fitted.center.copy_(center)
        fitted.axes.copy_(axes[:count] / variances.mean().sqrt())
        fitted.share.copy_(variances[:count].sum() / variances.sum())
        return fitted

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors.float() - self.center) @ self.axes.T


class ComponentNetwork(nn.Module, ABC):
    """A backbone, and the principal components of what it reads: uint8 images (B, 3, S, S) -> {head: components}.

    `width`: D, the length of the vectors that the components are of.
    """

    def __init__(self, backbone: ReadoutBackbone, head: str, width: int, count: int) -> None:
        super().__init__()
        self.head, self.backbone = head, backbone
        self.components = PrincipalComponents(width, count)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.forward_with_vector(images)[0]

    @abstractmethod
    def forward_with_vector(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the components, and the backbone's vectors (B, D)."""

    def vector(self, images: Tensor) -> Tensor:
        """Return the backbone's vectors (B, D)."""
        vectors: Tensor = self.backbone(images)
        return vectors

    def readout(self, images: Tensor) -> Readout:
        """Return the backbone's vectors and maps."""
        return self.backbone.readout(images)

    @abstractmethod
    def fitted_vectors(self, images: Tensor) -> Tensor:
        """Return what the components are fitted to: of each image n of the vectors that they are of (B, n, D).

        They depend on the image alone, and not on the batch it is in.
        """


class FittedVectors(nn.Module):
    """A network that tells, as vectors of images, what the components of another one are fitted to."""

    def __init__(self, network: ComponentNetwork) -> None:
        super().__init__()
        self.network = network

    def forward_with_vector(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {}, self.vector(images)

    def vector(self, images: Tensor) -> Tensor:
        return self.network.fitted_vectors(images)


def component_loss(output: Tensor, truth: Tensor, known: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over known vectors of (1 - cosine) / 2 + (mean smooth L1 distance of spread components) / 2.

    The sum is UNIC's (Sariyildiz et al., ECCV 2024). Centered, divided by one number and spread, all coordinates have
    the variance 1, so that no teacher outweighs others, and distances are its own: PHI-S (Ranzinger et al., ICLR 2025).
    Of the sum only the smooth L1 distance depends on the axes. `output`, `truth`: (N, K); `known`, `weights`: (N,).
    """
    angles = 1 - F.cosine_similarity(output, truth)
    distances = F.smooth_l1_loss(spread(output), spread(truth), reduction="none").mean(dim=1)
    return masked_mean((angles + distances) / 2, known, weights)


def spread(components: Tensor) -> Tensor:
    """Rotate principal components (B, K) so that all coordinates have the same variance, the mean of theirs.

    -> (B, N), N the next power of two: the components, with zeros, times Sylvester's Hadamard matrix, all of whose
    entries have the same size. Its rows are orthogonal: distances grow by the factor sqrt(N / K), and angles stay. Each
    power of two has such a matrix; K itself may have none.
    """
    count = components.shape[1]
    size = 1 << (count - 1).bit_length()
    rotated = F.pad(components, (0, size - count))
    for half in (1 << power for power in range(size.bit_length() - 1)):
        first, second = rotated.unflatten(1, (-1, 2, half)).unbind(dim=2)
        rotated = torch.stack([first + second, first - second], dim=2).flatten(1)
    return rotated / math.sqrt(count)


class ComponentSimilarity(Metric):
    """`cosine`, the mean cosine between predicted and true vectors, and `r2`, the explained share of their variance.

    The mean of all true vectors is 0, up to the images that they are of.
    """

    def __init__(self) -> None:
        self._cosine, self._error, self._square, self._count = 0.0, 0.0, 0.0, 0

    def add(self, guess: NDArray[np.float64], truth: NDArray[np.float64]) -> None:
        """Add predicted and true vectors (N, K), of which true ones that are 0 are unknown."""
        known = truth.any(axis=1)
        guess, truth = guess[known], truth[known]
        self._cosine += float(cosines(guess, truth).sum())
        self._error += float(((guess - truth) ** 2).sum())
        self._square += float((truth**2).sum())
        self._count += len(truth)

    def compute(self) -> dict[str, float]:
        if not self._count:
            return {}
        return {"cosine": float(self._cosine / self._count), "r2": float(1 - self._error / self._square)}
