"""Seeded sampling of images: a random order that other images don't disturb, and the sizes of long-tailed classes.

No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

VERSION = 3
"""Incremented with every change of what a seed draws. Steps that draw have it in their configuration."""


def version(draws: bool) -> dict[str, int]:
    """Return the version as an entry of a step's configuration, nothing for a step that does not draw."""
    return {"draws": VERSION} if draws else {}


def random_order(keys: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Return the positions of all keys in a random order. How two keys are ordered does not depend on the others.

    So the first 100 are among the first 1,000, and a draw from a part of the images agrees with one from all of them.
    """
    hashes = [hashlib.blake2b(f"{seed} {key}".encode(), digest_size=16).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=hashes.__getitem__), np.int64)


def long_tailed_counts(counts: Sequence[int], ratio: float) -> list[int]:
    """Return how many of each class's `counts` images a long tail keeps (Cui et al., CVPR 2019).

    n_c = n r^(c / (C - 1)) for class c of C, where n is the largest count: the first class has the most, and each one
    after it fewer by the same factor, down to `ratio` of the first; at least one, and no more than there are.
    """
    largest, last = max(counts, default=0), max(len(counts) - 1, 1)
    return [min(count, max(1, round(largest * ratio ** (number / last)))) for number, count in enumerate(counts)]
