"""Multi-crop: large and small views of each image together (SwAV, Caron et al., NeurIPS 2020, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.components.method import Policy, ViewKind

RATIO = 96 / 224
"""Side of a small view per side of a large one."""
MULTIPLE = 16
"""Sides of small views are multiples of it, in pixels, as transformers' patches need."""
SMALLEST = 32
"""Smallest side of a view in pixels: deep networks have no pixels left to see below it."""


def multi_crop(size: int, large: Sequence[Policy], small: Sequence[Policy]) -> list[ViewKind]:
    """Return the kinds of views: the large ones, of side `size` in pixels, then the small ones.

    multi_crop(224, [LARGE] * 2, [SMALL] * 6)  # 2 x 224 and 6 x 96 pixels
    """
    small_size = min(size, max(SMALLEST, round(size * RATIO / MULTIPLE) * MULTIPLE))
    return [*(ViewKind(size, policy) for policy in large), *(ViewKind(small_size, policy, True) for policy in small)]
