"""Weights of the student's losses: by schedule, equal, given, or learned."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.recipe.student import StudentConfig
from pipeline.stores.labels import LabelSpace
from student.dataset import StudentHead
from student.loss_weights import UncertaintyWeighting, build_loss_weighting
from tasks.teacher import TeacherSchedule


def head(name: str, schedule: TeacherSchedule | None = None) -> StudentHead:
    return StudentHead(name, LabelSpace("depth"), None, schedule, 0.0)


HEADS = {
    "slow": head("slow", TeacherSchedule(16, 1e-3, "adamw")),
    "fast": head("fast", TeacherSchedule(64, 8e-3, "adamw")),
    "foreign": head("foreign"),
}


def test_build_loss_weighting_prefers_given_weights() -> None:
    for rule in ("schedule", "equal"):
        given = {"slow": 0.25, "foreign": 3.0}
        config = StudentConfig.model_validate({"batch": 32, "lr": 1e-3, "weighting": rule, "loss_weights": given})
        module, weights = build_loss_weighting(config, HEADS)
        fast = 4.0 if rule == "schedule" else 1.0
        assert weights == {"slow": 0.25, "fast": fast, "foreign": 3.0}
        losses = {"slow": torch.tensor(4.0), "foreign": torch.tensor(1.0), "fast": torch.tensor(2.0)}
        assert module(losses, dict.fromkeys(losses, 1.0)).item() == 1 + 3 + 2 * fast


def test_build_loss_weighting_equal_needs_no_schedule() -> None:
    config = StudentConfig(weighting="equal")
    assert build_loss_weighting(config, HEADS)[1] == {"slow": 1.0, "fast": 1.0, "foreign": 1.0}


def test_build_loss_weighting_names_teacher_without_schedule() -> None:
    with pytest.raises(ConfigError, match=r"'foreign' has no training schedule.*student\.loss_weights\.foreign.*equal"):
        build_loss_weighting(StudentConfig(), HEADS)


def test_build_loss_weighting_refuses_learning_rates_of_another_optimizer() -> None:
    sgd = {"old": head("old", TeacherSchedule(16, 0.1, "sgd with momentum 0.9"))}
    with pytest.raises(
        ConfigError, match=r"'old' is trained by sgd with momentum 0\.9 and the student by adamw.*loss_weights\.old"
    ):
        build_loss_weighting(StudentConfig(), sgd)
    with pytest.raises(ConfigError, match=r"sgd with momentum 0\.9 and the student by sgd with momentum 0\.5"):
        build_loss_weighting(StudentConfig(optimizer="sgd", momentum=0.5), sgd)
    assert build_loss_weighting(StudentConfig(optimizer="sgd", batch=16, lr=0.1), sgd)[1] == {"old": 1.0}
    assert build_loss_weighting(StudentConfig(loss_weights={"old": 2}), sgd)[1] == {"old": 2.0}
    assert build_loss_weighting(StudentConfig(weighting="equal"), sgd)[1] == {"old": 1.0}


def test_build_loss_weighting_refuses_given_weights_with_uncertainty() -> None:
    with pytest.raises(ConfigError, match="loss_weights can't be given with weighting: uncertainty"):
        build_loss_weighting(StudentConfig(weighting="uncertainty", loss_weights={"slow": 1}), HEADS)


def test_uncertainty_weighting_starts_at_1_and_converges_to_half_over_loss() -> None:
    """At the minimum of exp(-s) L + s / 2, the weight exp(-s) is 1 / (2 L)."""
    module, weights = build_loss_weighting(StudentConfig(weighting="uncertainty"), HEADS)
    assert isinstance(module, UncertaintyWeighting)
    assert weights == {}
    losses = {"slow": torch.tensor(4.0), "fast": torch.tensor(0.1)}
    whole = dict.fromkeys(losses, 1.0)
    assert module(losses, whole).item() == pytest.approx(4.1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        module(losses, whole).backward()
        optimizer.step()
    learned = {name: math.exp(-float(s.detach())) for name, s in module.log_variance.items()}
    assert learned == pytest.approx({"slow": 1 / 8, "fast": 5.0, "foreign": 1.0}, rel=1e-3)


def test_uncertainty_weighting_learns_the_same_from_microbatches() -> None:
    """One batch in two microbatches: the second has no label of one head, and a third of the other's."""
    slopes = []
    for pieces in ([{"slow": 1.0, "fast": 1.0}], [{"slow": 1.0, "fast": 2 / 3}, {"fast": 1 / 3}]):
        module, _ = build_loss_weighting(StudentConfig(weighting="uncertainty"), HEADS)
        assert isinstance(module, UncertaintyWeighting)
        for shares in pieces:
            module({name: torch.tensor(4.0) for name in shares}, shares).backward()
        slopes.append([s.grad.item() for s in module.log_variance.values() if s.grad is not None])
    assert slopes == [pytest.approx([-3.5, -3.5])] * 2
