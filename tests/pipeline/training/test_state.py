"""States of trainings that are readable, but not of this training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import DataError, Stopped
from pipeline.models.checkpoint import load_state, save_state
from tests.pipeline.training.tiny_jobs import STATE, Linears, stopping, train

WRONG_STATES: dict[str, Callable[[dict[str, Any]], None]] = {
    "more steps": lambda state: state.update(step=10**9),
    "less than none": lambda state: state.update(step=-1),
    "a share of a step": lambda state: state.update(step=2.5),
    "no step": lambda state: state.pop("step"),
    "a word": lambda state: state.update(step="x"),
    "another model": lambda state: state.update(model={}),
    "no optimizer": lambda state: state.pop("optimizer"),
    "an empty optimizer": lambda state: state.update(optimizer={}),
    "no schedule": lambda state: state.update(schedule=None),
    "no images in a pass": lambda state: state.update(cuts=[[1, 0, 0]]),
    "a word for seconds": lambda state: state.update(seconds="x"),
    "a weight that is no number": lambda state: next(iter(state["model"].values())).fill_(math.nan),
    "an average that is no number": lambda state: state.update(ema={"weight": torch.tensor(math.inf)}),
    "another shape": lambda state: state["model"].update({name: w[None] for name, w in state["model"].items()}),
}


@pytest.mark.parametrize("change", WRONG_STATES.values(), ids=WRONG_STATES)
def test_fit_refuses_a_state_of_another_training(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """It would go on from wrong weights, or not train at all, and nobody would know."""
    with pytest.raises(Stopped):
        train(tmp_path, Linears(), stopping(after=3))
    state = load_state(tmp_path / STATE)
    change(state)
    save_state(tmp_path / STATE, state)
    with pytest.raises(DataError, match=r"work/state\.safetensors: not a state of this .*start teacher\.t over\."):
        train(tmp_path, Linears())
    (tmp_path / STATE).unlink()
    train(tmp_path, Linears())
