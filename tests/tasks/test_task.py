"""Tests of what all tasks share."""

from __future__ import annotations

import math

import pytest
import torch

from tasks.task import masked_mean


@pytest.mark.parametrize("unknown", [7.0, math.inf, math.nan])
def test_masked_mean_ignores_what_is_not_known(unknown: float) -> None:
    losses = torch.tensor([[1.0, 4.0], [unknown, 1.0]], requires_grad=True)
    mean = masked_mean(losses, torch.tensor([[True, True], [False, True]]))
    mean.backward()
    assert mean.item() == 2.0
    assert losses.grad is not None
    torch.testing.assert_close(losses.grad, torch.tensor([[1, 1], [0, 1]]) / 3)


def test_masked_mean_of_nothing_is_zero_with_a_graph() -> None:
    losses = torch.tensor([math.nan, 3.0], requires_grad=True)
    mean = masked_mean(losses, torch.tensor([False, False]))
    mean.backward()
    assert mean.item() == 0.0
    assert losses.grad is not None
    assert not losses.grad.any()
