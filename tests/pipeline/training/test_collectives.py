"""Collectives inside a pass: rows and gradients of all processes, and nothing sent by one alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.training.collectives import Collectives, synchronize_batch_norms
from pipeline.training.process_group import ProcessGroup
from tests.processes import Launcher

ROWS = (2, 0, 3)
"""Rows of each process."""


def exchange() -> dict[str, list[object]]:
    """Return what a process gets from each collective; its rows are 10 rank + number."""
    with ProcessGroup("cpu") as group:
        collectives = Collectives(group.rank, group.world_size)
        numbers = 10 * group.rank + torch.arange(ROWS[group.rank])
        rows = numbers[:, None].float().requires_grad_()
        everyone, own = collectives.all_gather(rows)
        (everyone.square() * (1 + group.rank)).sum().backward()
        assert rows.grad is not None
        return {
            "rows": everyone.flatten().tolist(),
            "own": everyone[own].flatten().tolist(),
            "gradient": rows.grad.flatten().tolist(),
            "numbers": collectives.all_gather(numbers).rows.tolist(),
            "mean": collectives.mean(rows).tolist(),
            "broadcast": collectives.broadcast(torch.full((2,), 5 + group.rank)).tolist(),
        }


def test_collectives_exchange_rows_gradients_and_means_of_unequal_parts(launcher: Launcher) -> None:
    found = launcher.call(3, exchange)
    numbers = [10 * rank + number for rank, count in enumerate(ROWS) for number in range(count)]
    for rank, each in enumerate(found):
        own = [number for number in numbers if number // 10 == rank]
        assert each["rows"] == each["numbers"] == numbers
        assert each["own"] == own
        assert each["gradient"] == [2 * number * (1 + 2 + 3) for number in own], "of all processes' losses"
        assert each["mean"] == [pytest.approx(np.mean(numbers))]
        assert each["broadcast"] == [5, 5]


def test_collectives_of_one_process_are_its_own_rows() -> None:
    rows, alone = torch.randn(3, 2), Collectives()
    everyone, own = alone.all_gather(rows)
    assert everyone is rows
    assert torch.equal(rows[own], rows)
    assert torch.equal(alone.mean(rows), rows.mean(dim=0))
    assert alone.broadcast(rows) is rows


def kinds_of_norms(device: str) -> list[str]:
    """Return the kinds of batch norms that a process has on a device, which need not exist."""
    with ProcessGroup("cpu") as group:
        made = synchronize_batch_norms(
            nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm2d(2))), group, device
        )
        return [type(module).__name__ for module in made.modules() if not isinstance(module, nn.Sequential)]


def test_synchronize_batch_norms_of_several_processes_on_cuda_alone(launcher: Launcher) -> None:
    plain = ["BatchNorm1d", "BatchNorm2d"]
    assert launcher.call(2, kinds_of_norms, "cuda") == [["SyncBatchNorm"] * 2] * 2
    assert launcher.call(2, kinds_of_norms, "cpu") == [plain] * 2
    assert kinds_of_norms("cuda") == plain
