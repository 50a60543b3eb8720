"""Validation on the way: when it is due, which weights are kept, when it ends a training, and exact resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.errors import Stopped
from pipeline.recipe.base import ValidateConfig
from pipeline.training.autotune import ComputeConfig
from pipeline.training.validation import Validation
from tests.pipeline.training.tiny_jobs import (
    STEPS,
    ConvNet,
    Linears,
    assert_same,
    log,
    stopping,
    train,
    train_with_result,
)


class Script:
    """Scores that are read off a list, one per validation; keeps a copy of the weights that it was given."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values, self.seen = values, list[dict[str, torch.Tensor]]()

    def __call__(self, objective: nn.Module, compute: ComputeConfig) -> dict[str, float]:
        assert not objective.training
        self.seen.append({name: tensor.clone() for name, tensor in objective.state_dict().items()})
        return {"miou": self.values[len(self.seen) - 1], "other": 0.5}


def validation(score: Any, better: Any = "higher", **config: Any) -> Validation:
    return Validation(ValidateConfig.model_validate(config), score, "miou", better)


def norm(objective: nn.Module, compute: ComputeConfig) -> dict[str, float]:
    """Score by the weights, so that a resumed training finds the same."""
    return {"miou": float(nn.utils.parameters_to_vector(objective.parameters()).detach().norm())}


@pytest.mark.parametrize(("every", "due"), [(1, [1, 2, 3, 4, 5, 6]), (4, [4, 6]), (0.5, [3, 6]), (99, [6])])
def test_validation_is_due_every_so_often_and_at_the_end(tmp_path: Path, every: Any, due: list[int]) -> None:
    script = Script([0.1] * 6)
    train(tmp_path, Linears(), validation=validation(script, every=every))
    assert [line["step"] for line in log(tmp_path) if "validation" in line] == due
    assert all(line["validation"] == {"miou": 0.1, "other": 0.5} for line in log(tmp_path) if "validation" in line)


@pytest.mark.parametrize(
    ("better", "keep", "best"),
    [("higher", "best", 2), ("lower", "best", 4), ("higher", "last", 6), ("lower", "last", 6)],
)
def test_fit_keeps_the_best_weights(tmp_path: Path, better: str, keep: str, best: int) -> None:
    script = Script([0.2, 0.9, 0.5, 0.1, 0.9, 0.3])
    model = Linears()
    result = train_with_result(tmp_path, model, validation=validation(script, better, every=1, keep=keep))
    assert all(torch.equal(tensor, script.seen[best - 1][name]) for name, tensor in model.state_dict().items())
    found = result.counts()["validation"]
    value = {"higher": 0.9, "lower": 0.1}[better]
    step = {"higher": 2, "lower": 4}[better]
    assert found == {"metric": "miou", "best": value, "step": step, "validations": 6, "kept": keep}


def test_validator_takes_any_number_for_better_than_nan(tmp_path: Path) -> None:
    """A metric may be undefined at first, such as the AUROC of a constant."""
    script = Script([math.nan, 0.2, 0.1, math.nan])
    result = train_with_result(tmp_path, Linears(), steps=4, validation=validation(script, every=1))
    found = result.counts()["validation"]
    assert (found["best"], found["step"]) == (0.2, 2)


def test_fit_keeps_the_best_average(tmp_path: Path) -> None:
    script, model = Script([0.1, 0.3, 0.2]), Linears()
    train(tmp_path, model, ema=0.9, validation=validation(script, every=2))
    plain = train(tmp_path / "plain", Linears())
    assert all(torch.equal(tensor, script.seen[1][name]) for name, tensor in model.state_dict().items())
    assert not all(torch.equal(one, two) for one, two in zip(model.parameters(), plain.parameters(), strict=True))


def test_fit_ends_when_patience_does(tmp_path: Path) -> None:
    script = Script([0.5, 0.4, 0.6, 0.6, 0.1, 0.9])
    result = train_with_result(tmp_path, Linears(), validation=validation(script, every=1, patience=2))
    assert (len(log(tmp_path)), result.steps, result.counts()["steps"]) == (5, 5, 5), "0.6 again is no better"
    assert result.counts()["validation"]["step"] == 3


def test_fit_with_validation_trains_as_without(tmp_path: Path) -> None:
    measured = train(tmp_path / "a", ConvNet(), validation=validation(norm, every=1, keep="last"))
    assert_same(measured, train(tmp_path / "b", ConvNet()))


@pytest.mark.parametrize("config", [{}, {"patience": 2}, {"keep": "last"}], ids=str)
@pytest.mark.parametrize("better", ["higher", "lower"])
def test_fit_with_validation_resumes_as_if_never_stopped(tmp_path: Path, better: str, config: dict[str, Any]) -> None:
    """Of the weights' norm, the best is the first or the last: kept in the state, or found after it."""
    fields: dict[str, Any] = {"validation": validation(norm, better, every=1, **config), "ema": 0.5}
    whole = train_with_result(tmp_path / "whole", first := ConvNet(), **fields)
    for seed, after in enumerate((1, 3)):  # other weights each time it is begun again
        if after < whole.steps:
            with pytest.raises(Stopped):
                train(tmp_path / "parts", ConvNet(seed), stopping(after), **fields)
    parts = train_with_result(tmp_path / "parts", second := ConvNet(99), **fields)
    assert_same(second, first)
    assert parts.validation == whole.validation
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert whole.steps == STEPS or config == {"patience": 2}


@pytest.mark.parametrize(("field", "value"), [("every", 0), ("every", 1.5), ("patience", 0), ("keep", "first")])
def test_validate_config_refuses_what_means_nothing(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        ValidateConfig.model_validate({field: value})
