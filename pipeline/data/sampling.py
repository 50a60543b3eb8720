"""Images in a random order, and how many of each class a long tail keeps. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

VERSION = 2
"""Goes up with any change of what a seed draws; steps that draw have it in their configurations."""


def version(draws: bool) -> dict[str, int]:
    """For the configuration of a step, if it `draws`."""
    return {"draws": VERSION} if draws else {}


def random_order(keys: Sequence[str], seed: int) -> NDArray[np.int64]:
    """The positions of all keys in a random order, in which two keys stay as they are whatever others are there.

    So the beginnings of one seed's orders are parts of each other, and what is drawn from some images is what is drawn
    from all of them, as far as it is there.
    """
    drawn = [hashlib.blake2b(f"{seed} {key}".encode(), digest_size=16).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=drawn.__getitem__), np.int64)


def long_tail(there: Sequence[int], ratio: float) -> list[int]:
    """How many images of each class are kept, so that the first class has the most and each one after it fewer by the
    same factor, down to `ratio` of the first (Cui et al., CVPR 2019): n_c = n r^(c / (C - 1)), n being the size of the
    largest class; at least one, and no more than `there` are.
    """
    most, last = max(there, default=0), max(len(there) - 1, 1)
    return [min(count, max(1, round(most * ratio ** (number / last)))) for number, count in enumerate(there)]
