"""A device that has no values: whatever asks it for one, and so would let the host wait for a GPU, fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch

META = "meta"
"""Torch's device of tensors without values. Reading one, or a shape that depends on values, raises an error."""


@contextlib.contextmanager
def no_values() -> Iterator[str]:
    """Give the name of the device, where autocast does nothing."""
    autocast = torch.autocast

    def of(device: str, *arguments: object, **options: object) -> contextlib.AbstractContextManager[object]:
        found: contextlib.AbstractContextManager[object] = (
            contextlib.nullcontext() if device == META else autocast(device, *arguments, **options)  # type: ignore[arg-type]
        )
        return found

    with mock.patch.object(torch, "autocast", of):
        yield META
