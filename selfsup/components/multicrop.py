"""Multi-crop: large and small views of each image together (SwAV, Caron et al., NeurIPS 2020, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.components.method import Policy, ViewKind

LARGE, SMALL = Policy(area=(0.14, 1.0)), Policy(area=(0.05, 0.14))
LARGE_VIEWS = 2
"""SwAV's views and their number, as of DeepCluster-v2, which is from the same paper."""
RATIO = 96 / 224
"""Side of a small view per side of a large one."""
MULTIPLE, SMALLEST = 16, 32
"""Sides of small views, in pixels, are multiples of a transformer's patch, and large enough for deep networks."""


def multi_crop(size: int, large: Sequence[Policy], small: Sequence[Policy]) -> list[ViewKind]:
    """Return the large kinds of views, of side `size` in pixels, then the small ones: for 224, these have 96 pixels."""
    small_size = min(size, max(SMALLEST, round(size * RATIO / MULTIPLE) * MULTIPLE))
    return [*(ViewKind(size, policy) for policy in large), *(ViewKind(small_size, policy, True) for policy in small)]
