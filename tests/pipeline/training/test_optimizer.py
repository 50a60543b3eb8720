"""The optimiser: its learning rate schedule, parameter groups, LARS and momentum."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from pipeline.recipe.base import FitConfig
from pipeline.training.optimizer import build_optimizer, lr_factor, parameter_groups, set_weight_decay, weight_decay
from tests.pipeline.training.tiny_jobs import ConvNet


def test_lr_factor_rises_in_a_line_and_falls_in_a_cosine_to_zero() -> None:
    rates = [lr_factor(step, 100, 0.2) for step in range(101)]
    np.testing.assert_allclose(rates[:21], np.arange(1, 22) / 21)
    np.testing.assert_allclose(rates[20:], (1 + np.cos(np.linspace(0, np.pi, 81))) / 2, atol=1e-12)
    assert rates[20] == 1
    assert rates[100] == 0


def test_lr_factor_has_a_whole_cosine_for_every_number_of_steps() -> None:
    """From 1 at the first step to almost 0 at the last one: a short training is not the beginning of a longer one."""
    runs = {steps: np.array([lr_factor(step, steps, 0.0) for step in range(steps)]) for steps in (50, 500, 5000)}
    for rates in runs.values():
        assert rates[0] == 1
        assert (np.diff(rates) < 0).all()
        assert rates[-1] == pytest.approx(0, abs=1e-3)
    for short, long in ((50, 500), (50, 5000), (500, 5000)):
        assert (runs[short][1:] < runs[long][1:short]).all()


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 0.99), (2, 0.5), (7, 0), (7, 0.99)])
def test_lr_factor_is_above_zero_in_every_step_and_one_in_some(steps: int, warmup: float) -> None:
    rates = [lr_factor(step, steps, warmup) for step in range(steps)]
    assert min(rates) > 0
    assert max(rates) == 1


def test_parameter_groups_decay_matrices_and_set_the_backbones_rate() -> None:
    module = ConvNet()
    module.head[2].bias.requires_grad_(False)
    groups = parameter_groups(module, FitConfig(lr=2, backbone_lr=0.25, weight_decay=0.3))
    names = {parameter: name for name, parameter in module.named_parameters()}
    found = [(names[one], group["lr"], group["weight_decay"]) for group in groups for one in group["params"]]
    assert sorted(found) == [
        ("backbone.0.bias", 0.5, 0),
        ("backbone.0.weight", 0.5, 0.3),
        ("backbone.1.bias", 0.5, 0),
        ("backbone.1.weight", 0.5, 0),
        ("head.2.weight", 2, 0.3),
    ]


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_build_optimizer_lars_is_the_papers(decay: float) -> None:
    """Two steps in double precision: matrices by w and g, with or without decay; biases and norms as by SGD."""
    module = ConvNet().double()
    config = FitConfig(optimizer="lars", lr=0.5, backbone_lr=0.25, momentum=0.9, weight_decay=decay)
    optimizer = build_optimizer(module, config)
    expected = {name: one.detach().numpy().copy() for name, one in module.named_parameters()}
    moments = {name: np.zeros_like(one) for name, one in expected.items()}
    for step in range(2):
        for number, (name, one) in enumerate(module.named_parameters()):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(10 * step + number)).double()
            w, g = expected[name], one.grad.numpy()
            if one.ndim > 1:
                trust = 0.001 * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w))
                g = trust * (g + decay * w)
            moments[name] = 0.9 * moments[name] + g
            expected[name] = w - (0.125 if name.startswith("backbone") else 0.5) * moments[name]
        optimizer.step()
    for name, one in module.named_parameters():
        np.testing.assert_allclose(one.detach().numpy(), expected[name], rtol=1e-7)


def test_lr_factor_with_drops_falls_to_a_tenth_at_each() -> None:
    rates = [lr_factor(step, 12, 0.0, (1 / 3, 0.75)) for step in range(12)]
    assert rates == pytest.approx([1.0] * 4 + [0.1] * 5 + [0.01] * 3)


def test_lr_factor_warms_up_before_drops() -> None:
    rates = [lr_factor(step, 10, 0.3, (0.5,)) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, *[0.1] * 5])


@pytest.mark.parametrize("drops", [(0.0,), (1.0,), (-0.1,)])
def test_fit_config_drops_lie_inside_the_training(drops: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="drops"):
        FitConfig(drops=drops)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_build_optimizer_sets_momentum_and_nesterov(optimizer: Literal["sgd", "lars"], nesterov: bool) -> None:
    built = build_optimizer(ConvNet(), FitConfig(optimizer=optimizer, nesterov=nesterov, momentum=0.8))
    assert {group["nesterov"] for group in built.param_groups} == {nesterov}
    assert {group["momentum"] for group in built.param_groups} == {0.8}


def test_build_optimizer_nesterov_adds_a_step_of_momentum() -> None:
    """Two steps with gradients of 1: the moment is 1, then 1.9; a step is gradient + 0.9 x moment."""
    module = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.zeros_(module.weight)
    config = FitConfig(optimizer="sgd", nesterov=True, lr=1.0, momentum=0.9, weight_decay=0.0)
    optimizer = build_optimizer(module, config)
    for wanted in (-1.9, -1.9 - (1 + 0.9 * 1.9)):
        module.weight.grad = torch.ones_like(module.weight)
        optimizer.step()
        assert module.weight.item() == pytest.approx(wanted)


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_set_weight_decay_moves_what_decays_in_a_cosine(decay: Literal["matrices", "all"]) -> None:
    config = FitConfig(weight_decay=0.04, weight_decay_end=0.4, decay=decay)
    assert [weight_decay(step, 100, config) for step in (0, 50, 100)] == pytest.approx([0.04, 0.22, 0.4])
    assert weight_decay(70, 100, FitConfig(weight_decay=0.04)) == 0.04
    optimizer = build_optimizer(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), config)
    set_weight_decay(optimizer, 0.3)
    found = {(group["params"][0].ndim > 1): group["weight_decay"] for group in optimizer.param_groups}
    assert found == {True: 0.3, False: 0.3 if decay == "all" else 0.0}


def test_build_optimizer_sets_beta2_of_adamw() -> None:
    assert build_optimizer(nn.Linear(2, 2), FitConfig(beta2=0.95)).param_groups[0]["betas"] == (0.9, 0.95)


@pytest.mark.parametrize(("optimizer", "waits"), [("adamw", False), ("sgd", False), ("lars", True)])
def test_build_optimizer_for_scaled_losses_waits_for_no_device(
    monkeypatch: pytest.MonkeyPatch, optimizer: Literal["adamw", "sgd", "lars"], waits: bool
) -> None:
    """The scaler reads whether a gradient is finite for those that can't take the answer on the device."""
    read: list[object] = []
    monkeypatch.setattr(torch.amp.GradScaler, "_maybe_opt_step", lambda *given, **_: read.append(given))
    module, scaler = nn.Linear(3, 2), torch.amp.GradScaler("cpu")
    built = build_optimizer(module, FitConfig(optimizer=optimizer), scaled=True)
    scaler.scale(module(torch.ones(1, 3)).sum()).backward()
    scaler.step(built)
    assert bool(read) == waits


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_build_optimizer_for_scaled_losses_takes_the_steps_of_sgd_but_those_left_out(momentum: float) -> None:
    """Also if the first one is left out, or a parameter has no gradient at first: the fused one alone fails there."""
    config = FitConfig(optimizer="sgd", lr=0.1, momentum=momentum, weight_decay=0.01)
    plain, scaled = nn.Linear(64, 64), nn.Linear(64, 64)
    scaled.load_state_dict(plain.state_dict())
    sgd, fused = build_optimizer(plain, config), build_optimizer(scaled, config, scaled=True)
    scaler = torch.amp.GradScaler("cpu")
    for step in range(6):
        images, bias = torch.randn(4, 64, generator=torch.Generator().manual_seed(step)), step > 2
        left_out = step in (0, 4)
        for module, optimizer in ((plain, sgd), (scaled, fused)):
            loss = functional.linear(images, module.weight, module.bias if bias else None).square().mean()
            if optimizer is fused:
                scaler.scale(loss * (torch.inf if left_out else 1)).backward()
                scaler.step(fused)
                scaler.update()
            elif not left_out:
                loss.backward()
                sgd.step()
            optimizer.zero_grad()
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(other, one)
