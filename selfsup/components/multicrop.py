"""Multi-crop: global and local views of each image together (SwAV, Caron et al., NeurIPS 2020, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.components.method import Policy, ViewKind

GLOBAL_CROP, LOCAL_CROP = Policy(area=(0.14, 1.0)), Policy(area=(0.05, 0.14))
GLOBAL_VIEWS = 2
"""SwAV's views and their number, as of DeepCluster-v2, which is from the same paper."""
RATIO = 96 / 224
"""Side of a local view per side of a global one."""
MULTIPLE, SMALLEST = 16, 32
"""Sides of local views, in pixels, are multiples of a transformer's patch, and large enough for deep networks."""


def multi_crop(size: int, global_crops: Sequence[Policy], local_crops: Sequence[Policy]) -> list[ViewKind]:
    """Return the kinds of global views, of side `size` pixels, then of local ones: for 224, 96 pixels."""
    local_size = min(size, max(SMALLEST, round(size * RATIO / MULTIPLE) * MULTIPLE))
    global_kinds = [ViewKind(size, policy) for policy in global_crops]
    return global_kinds + [ViewKind(local_size, policy, is_local=True) for policy in local_crops]
