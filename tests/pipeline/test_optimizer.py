"""How parameters move: the schedule of the learning rate, and which parameters share one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.optimizer import build_optimizer, learning_rate, parameter_groups
from pipeline.sections import FitConfig
from tests.pipeline.training import Pictures


def test_the_rate_rises_in_a_line_to_its_peak_and_falls_in_a_cosine_to_zero() -> None:
    rates = [learning_rate(step, 100, 0.2) for step in range(101)]
    np.testing.assert_allclose(rates[:21], np.arange(1, 22) / 21)
    np.testing.assert_allclose(rates[20:], (1 + np.cos(np.linspace(0, np.pi, 81))) / 2, atol=1e-12)
    assert rates[20] == 1
    assert rates[100] == 0


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 0.99), (2, 0.5), (7, 0), (7, 0.99)])
def test_every_step_has_a_rate_above_zero_and_one_has_the_whole(steps: int, warmup: float) -> None:
    rates = [learning_rate(step, steps, warmup) for step in range(steps)]
    assert min(rates) > 0
    assert max(rates) == 1


def test_only_matrices_decay_and_only_the_backbone_has_its_own_rate() -> None:
    module = Pictures()
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
def test_lars_is_the_papers(decay: float) -> None:
    """Two steps in double precision: matrices by w and g, with or without decay; biases and norms as by SGD."""
    module = Pictures().double()
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
