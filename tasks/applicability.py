"""Applicability: is an image of the kind that a teacher knows? A p-value from the distances of its features.

The distance of an image to those that a teacher was trained on is that to its k-th nearest neighbour among their unit
vectors (Sun et al., ICML 2022, "Out-of-distribution detection with deep nearest neighbors"). The applicability is the
share of held-out images that lie at least as far: a conformal p-value (Bates et al., Annals of Statistics 2023),
uniform on [0, 1] for images of the teacher's kind, and near 0 for others.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.checkpoint import read_tensors, write_tensors
from pipeline.steps.artifact import Artifact
from tasks.teacher import APPLICABILITY_FILE

NEIGHBORS = 5
"""k: the distance of an image is that to its k-th nearest neighbour, so that one odd training image counts little."""
MAX_TRAINING, MAX_HELD_OUT = 4000, 2000
"""Images of each kind that are looked at, drawn at random from more."""
MIN_HELD_OUT = 10
"""Held-out images below which the share of them tells too little."""


@dataclasses.dataclass(frozen=True)
class Applicability:
    """Reference vectors and distances that an image is compared with.

    Example:
        applicability = Applicability.fit(training_vectors, held_out_vectors)
        applicability(vectors)  # (B, D) -> (B,) in [0, 1]
    """

    training: Tensor
    """Unit vectors of training images, (N, D) float16."""
    distances: Tensor
    """Distances of the held-out images, (M,) float32, ascending."""

    @classmethod
    def fit(cls, training: NDArray[np.float32], held_out: NDArray[np.float32]) -> Self:
        """Return the applicability that vectors of training images (N, D) and of held-out images (M, D) define."""
        unit = _unit(training).half()
        return cls(unit, _distances(unit, held_out).sort().values)

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the share of held-out images that lie at least as far as each of these, (B, D) -> (B,) in [0, 1]."""
        nearer = torch.searchsorted(self.distances, _distances(self.training, vectors))
        share: NDArray[np.float32] = (1 - nearer / len(self.distances)).numpy().astype(np.float32)
        return share

    def save(self, folder: Path) -> None:
        """Write it into the folder of the teacher's artifact."""
        write_tensors(folder / APPLICABILITY_FILE, {"training": self.training, "distances": self.distances})

    @classmethod
    def load(cls, artifact: Artifact) -> Self | None:
        """Read it of a teacher's artifact; None if it has none."""
        return cls(**artifact.load(APPLICABILITY_FILE, read_tensors)[1]) if artifact.has(APPLICABILITY_FILE) else None


def _unit(vectors: NDArray[np.float32]) -> Tensor:
    return F.normalize(torch.from_numpy(vectors).float(), dim=1)


def _distances(training: Tensor, vectors: NDArray[np.float32]) -> Tensor:
    """Return the distance of each vector (B, D) to its k-th nearest neighbour among unit vectors (N, D)."""
    similarity = _unit(vectors) @ training.float().T
    nearest = similarity.topk(min(NEIGHBORS, len(training)), dim=1).values[:, -1]
    return (2 - 2 * nearest).clamp(min=0).sqrt()
