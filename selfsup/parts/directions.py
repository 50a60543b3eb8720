"""Products of directions."""

from __future__ import annotations

import torch
from torch import Tensor


def products(one: Tensor, other: Tensor) -> Tensor:
    """(N, D) and (M, D) -> (N, M), each row of the one times each of the other: in float32, whatever comes in, and also
    under autocast, which would round what softmaxes over cosines live on.
    """
    with torch.autocast(one.device.type, enabled=False):
        return one.float() @ other.float().T
