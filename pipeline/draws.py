"""Images in a random order. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def random_order(keys: Sequence[str], seed: int) -> NDArray[np.int64]:
    """The positions of all keys in a random order, in which two keys stay as they are whatever others are there.

    So the beginnings of one seed's orders are parts of each other, and what is drawn from some images is what is drawn
    from all of them, as far as it is there.
    """
    drawn = [hashlib.blake2b(f"{seed} {key}".encode(), digest_size=16).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=drawn.__getitem__), np.int64)
