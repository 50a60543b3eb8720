"""Object keypoint similarity, COCO's measure of how near two sets of keypoints are (https://cocodataset.org)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.stores.labels import Value
from tasks.instances import box_overlaps

PERSON_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
"""How far apart annotators place each of COCO's 17 points of a person, as a share of the root of its area."""
DEFAULT_SIGMA = 0.05
"""For points of any other number."""


def sigmas(count: int) -> NDArray[np.float64]:
    """Return the tolerance (K,) of each of K keypoints: COCO's for 17, as its own tools do, else DEFAULT_SIGMA."""
    return np.array(PERSON_SIGMAS if count == len(PERSON_SIGMAS) else [DEFAULT_SIGMA] * count)


def match_radii(count: int) -> NDArray[np.float64]:
    """Return how far off each of K keypoints (K,) is at a similarity of 0.5, as a share of the root of the area."""
    return 2 * sigmas(count) * math.sqrt(2 * math.log(2))


def similarities(one: Value, other: Value) -> NDArray[np.float64]:
    """Return the similarity (N, M) of the N objects of a label of keypoints to the M of another, in [0, 1].

    It is the mean over the points that the other object has, of exp(-d^2 / (2 area (2 sigma)^2)) at a distance d, and 0
    for a point that the one has not. Objects that have none are compared by their boxes.
    """
    scale = other["size"] / np.maximum(one["size"], 1)
    offsets = one["keypoints"][:, None] * scale - other["keypoints"][None].astype(np.float64)
    spread = 2 * (2 * sigmas(offsets.shape[2])) ** 2 * np.maximum(other["areas"], 1e-9)[None, :, None]
    known = other["visibility"][None] > 0
    near = np.exp(-(offsets**2).sum(axis=3) / spread) * (known & (one["visibility"][:, None] > 0))
    counts = known.sum(axis=2)
    return np.where(counts > 0, near.sum(axis=2) / np.maximum(counts, 1), box_overlaps(one, other))
