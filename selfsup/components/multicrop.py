"""Large and small views of an image together: multi-crop (Caron et al., NeurIPS 2020, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.components.method import Policy, ViewKind

RATIO = 96 / 224
"""Of the small views' side to the large ones'."""
STEP, SMALLEST = 16, 32
"""Sides are multiples of it, patches of transformers; below the smallest, deep networks have nothing left to see."""


def multi_crop(size: int, large: Sequence[Policy], small: Sequence[Policy]) -> list[ViewKind]:
    """The large views, of side `size`, and then the small ones."""
    side = min(size, max(SMALLEST, round(size * RATIO / STEP) * STEP))
    return [*(ViewKind(size, policy) for policy in large), *(ViewKind(side, policy, True) for policy in small)]
