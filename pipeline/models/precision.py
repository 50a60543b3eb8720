"""Products in full float32, where a GPU would round to TF32: for what compares vectors by their last digits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Compute matrix products inside in float32, whatever `torch.set_float32_matmul_precision` was told before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
