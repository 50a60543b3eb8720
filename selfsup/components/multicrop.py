"""Multi-crop: global and local views of each image together (SwAV, Caron et al., NeurIPS 2020, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.components.method import Policy, ViewKind

SWAV_CROP, SWAV_CROP_ALONE, SWAV_LOCAL_CROP = (
    Policy(area=(0.14, 1.0)),
    Policy(area=(0.08, 1.0)),
    Policy(area=(0.05, 0.14)),
)
"""Global views beside local ones, global views alone, and local views, as in the authors' code."""
SWAV_GLOBAL_VIEWS = 2
RATIO = 96 / 224
"""Side of a local view per side of a global one."""
MULTIPLE, SMALLEST = 16, 32
"""Sides of local views, in pixels, are multiples of a transformer's patch, and large enough for deep networks."""


def swav_views(size: int, local_views: int) -> list[ViewKind]:
    """Return the kinds of views of SwAV, and of DeepCluster-v2, which is from the same paper."""
    global_crop = SWAV_CROP if local_views else SWAV_CROP_ALONE
    return multi_crop(size, [global_crop] * SWAV_GLOBAL_VIEWS, [SWAV_LOCAL_CROP] * local_views)


def multi_crop(size: int, global_crops: Sequence[Policy], local_crops: Sequence[Policy]) -> list[ViewKind]:
    """Return the kinds of global views, of side `size` pixels, then of local ones: for 224, 96 pixels."""
    local_size = min(size, max(SMALLEST, round(size * RATIO / MULTIPLE) * MULTIPLE))
    global_kinds = [ViewKind(size, policy) for policy in global_crops]
    return global_kinds + [ViewKind(local_size, policy, is_local=True) for policy in local_crops]
