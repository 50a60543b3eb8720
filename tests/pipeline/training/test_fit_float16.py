"""Training in float16: losses are scaled, and steps whose gradient overflows are left out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import DataError, Stopped
from pipeline.models.checkpoint import load_state
from pipeline.training import fit
from pipeline.training.autotune import ComputeConfig
from tests.pipeline.training.tiny_jobs import (
    STATE,
    STEPS,
    Batch,
    ConvNet,
    Linears,
    assert_same,
    log,
    stopping,
    train,
    vector,
)

FP16 = ComputeConfig("cpu", "fp16", False, {})


class Loud(Linears):
    """Its gradient is so large that float16 holds it at a small scale of the losses alone."""

    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = super().mean(batch)
        return loss * 1000, terms


class Faint(Linears):
    """Its gradients are below what float16 holds."""

    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = super().mean(batch)
        return loss * 1e-6, terms


class Infinite(Linears):
    """Its gradient is infinite at any scale, and its loss is not."""

    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = super().mean(batch)
        return loss + (self.head.bias - self.head.bias.detach()).square().sum().sqrt(), terms


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_fit_in_float16_takes_nearly_the_steps_of_float32(tmp_path: Path, optimizer: str) -> None:
    """Without scaled losses most gradients of so small a loss would be zero in float16."""
    ways = [(name, ComputeConfig("cpu", name, False, {})) for name in ("fp16", "32")]
    half, whole = (train(tmp_path / way, Faint(), compute=compute, optimizer=optimizer) for way, compute in ways)
    torch.testing.assert_close(vector(half), vector(whole), rtol=0.02, atol=0.002)
    losses = [[line["loss"] for line in log(tmp_path / way)] for way, _ in ways]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_fit_in_float16_leaves_out_steps_until_their_gradient_is_finite(tmp_path: Path, optimizer: str) -> None:
    before = vector(Loud())
    train(tmp_path / "one", loud := Loud(), compute=FP16, steps=1, optimizer=optimizer)
    assert torch.equal(vector(loud), before), "the first step overflows"
    train(tmp_path / "many", loud := Loud(), compute=FP16, steps=20, optimizer=optimizer)
    assert bool(vector(loud).isfinite().all())
    assert not torch.equal(vector(loud), before)


def test_fit_in_float16_ends_if_no_scale_makes_the_gradient_finite(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"the gradient is nan at step {fit.MOST_LEFT_OUT + 1}\. Images of the batch: 20\.0"
    ):
        train(tmp_path, Infinite(), compute=FP16, steps=60)
    assert len(log(tmp_path)) == fit.MOST_LEFT_OUT


@pytest.mark.parametrize(("after", "optimizer"), [(1, "adamw"), (4, "adamw"), (4, "sgd")])
def test_fit_in_float16_resumes_with_its_scale(tmp_path: Path, after: int, optimizer: str) -> None:
    whole = train(tmp_path / "whole", ConvNet(), compute=FP16, optimizer=optimizer)
    with pytest.raises(Stopped):
        train(tmp_path / "parts", ConvNet(), stopping(after), compute=FP16, optimizer=optimizer)
    assert math.log2(load_state(tmp_path / "parts" / STATE)["scaler"]["scale"]) <= 16
    assert_same(train(tmp_path / "parts", ConvNet(5), compute=FP16, optimizer=optimizer), whole)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert len(log(tmp_path / "whole")) == STEPS
