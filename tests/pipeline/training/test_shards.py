"""Shards of an optimiser: what each process keeps, and that trainings come to the same numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor, optim

from pipeline.errors import Stopped
from pipeline.models.checkpoint import load_state
from pipeline.steps import ranks
from pipeline.training import fit
from pipeline.training.objective import Objective
from pipeline.training.shards import divide
from tests.pipeline.training.tiny_jobs import QUIET, STATE, STEPS, ConvNet, Linears, log, stopping, train
from tests.processes import Launcher

SHARDED = dataclasses.replace(QUIET, shard_optimizer=True)
Weights = dict[str, NDArray[Any]]


@pytest.mark.parametrize(
    ("sizes", "count", "shards"),
    [
        ([1, 2, 3], 1, [0, 0, 0]),
        ([5, 1, 4, 2], 2, [0, 0, 1, 1]),
        ([7], 3, [0]),
        ([], 2, []),
        ([2, 2, 2, 2], 4, [0, 1, 2, 3]),
    ],
)
def test_divide_gives_shards_of_about_equal_sums(sizes: list[int], count: int, shards: list[int]) -> None:
    assert divide(sizes, count) == shards


def train_sharded(out: Path, objective: type[Objective], fields: dict[str, Any], sharded: bool) -> tuple[Weights, int]:
    """Return the weights that this process has at the end of the fit, and how many numbers its optimiser keeps."""
    kept = list[optim.Optimizer]()
    build = fit.build_optimizer

    def build_and_keep(*args: Any) -> optim.Optimizer:
        kept.append(build(*args))
        return kept[0]

    setattr(fit, "build_optimizer", build_and_keep)  # noqa: B010 - for this process alone
    trained = train(out, objective(), SHARDED if sharded else QUIET, **fields)
    tensors = [value for state in kept[0].state.values() for value in state.values() if isinstance(value, Tensor)]
    weights = {name: tensor.numpy() for name, tensor in trained.state_dict().items()}
    return weights, sum(tensor.numel() for tensor in tensors if tensor.ndim)


@pytest.mark.parametrize(
    ("objective", "fields"),
    [
        (Linears, {"ema": 0.5}),
        (ConvNet, {"optimizer": "sgd", "accumulate": 2, "clip": 0.01}),
        (ConvNet, {"optimizer": "lars", "checkpoint_s": 0}),
    ],
    ids=str,
)
def test_optimizer_shards_change_no_number_and_divide_the_state(
    launcher: Launcher, tmp_path: Path, objective: type[Objective], fields: dict[str, Any]
) -> None:
    fields = {"batch": 8, **fields}
    whole = launcher.call(2, train_sharded, tmp_path / "whole", objective, fields, False)
    parts = launcher.call(2, train_sharded, tmp_path / "parts", objective, fields, True)
    for weights, _ in parts:
        for name, tensor in whole[0][0].items():
            np.testing.assert_array_equal(weights[name], tensor, err_msg=name)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    amounts = [amount for _, amount in parts]
    assert sum(amounts) == whole[0][1]
    assert min(amounts) > 0


def stop_sharded(out: Path, objective: type[Objective], fields: dict[str, Any]) -> None:
    runtime = dataclasses.replace(stopping(after=3) if ranks.is_first() else QUIET, shard_optimizer=True)
    with pytest.raises(Stopped):
        train(out, objective(), runtime, **fields)


@pytest.mark.parametrize("after", [1, 3])
def test_optimizer_shards_are_saved_as_one_state(launcher: Launcher, tmp_path: Path, after: int) -> None:
    fields = {"batch": 6}
    whole = launcher.call(2, train_sharded, tmp_path / "whole", Linears, fields, False)[0][0]
    launcher.call(2, stop_sharded, tmp_path / "parts", Linears, fields)
    state = load_state(tmp_path / "parts" / STATE)
    assert state["step"] < STEPS
    assert sorted(state["optimizer"]["state"]) == [0, 1, 2, 3]
    for weights, _ in launcher.call(after, train_sharded, tmp_path / "parts", Linears, fields, True):
        for name, tensor in whole.items():
            np.testing.assert_allclose(weights[name], tensor, rtol=1e-4, atol=1e-6, err_msg=name)
