"""Weights of the student's losses: by schedule, equal, given, or learned."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.recipe.student import StudentConfig
from pipeline.stores.labels import LabelSpace
from student.dataset import StudentHead
from student.loss_weights import RunningLossWeighting, UncertaintyWeighting, build_loss_weighting, final_weights
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
        module = build_loss_weighting(config, HEADS)
        fast = 4.0 if rule == "schedule" else 1.0
        assert final_weights(module) == {"slow": 0.25, "fast": fast, "foreign": 3.0}
        losses = {"slow": torch.tensor(4.0), "foreign": torch.tensor(1.0), "fast": torch.tensor(2.0)}
        assert module(losses, dict.fromkeys(losses, 1.0)).item() == 1 + 3 + 2 * fast


def test_build_loss_weighting_equal_needs_no_schedule() -> None:
    config = StudentConfig(weighting="equal")
    assert final_weights(build_loss_weighting(config, HEADS)) == {"slow": 1.0, "fast": 1.0, "foreign": 1.0}


def test_final_weights_of_learned_ones_need_no_gradient() -> None:
    module = build_loss_weighting(StudentConfig(weighting="uncertainty"), HEADS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert final_weights(module) == dict.fromkeys(HEADS, 1.0)


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
    assert final_weights(build_loss_weighting(StudentConfig(optimizer="sgd", batch=16, lr=0.1), sgd)) == {"old": 1.0}
    assert final_weights(build_loss_weighting(StudentConfig(loss_weights={"old": 2}), sgd)) == {"old": 2.0}
    assert final_weights(build_loss_weighting(StudentConfig(weighting="equal"), sgd)) == {"old": 1.0}


@pytest.mark.parametrize("weighting", ["uncertainty", "running"])
def test_build_loss_weighting_refuses_given_weights_where_it_finds_them(weighting: str) -> None:
    config = StudentConfig.model_validate({"weighting": weighting, "loss_weights": {"slow": 1}})
    with pytest.raises(ConfigError, match=f"loss_weights can't be given with weighting: {weighting}"):
        build_loss_weighting(config, HEADS)


def test_uncertainty_weighting_starts_at_1_and_converges_to_half_over_loss() -> None:
    """At the minimum of exp(-s) L + s / 2, the weight exp(-s) is 1 / (2 L)."""
    module = build_loss_weighting(StudentConfig(weighting="uncertainty"), HEADS)
    assert isinstance(module, UncertaintyWeighting)
    assert final_weights(module) == {"slow": 1.0, "fast": 1.0, "foreign": 1.0}
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
        module = build_loss_weighting(StudentConfig(weighting="uncertainty"), HEADS)
        assert isinstance(module, UncertaintyWeighting)
        for shares in pieces:
            module({name: torch.tensor(4.0) for name in shares}, shares).backward()
        slopes.append([s.grad.item() for s in module.log_variance.values() if s.grad is not None])
    assert slopes == [pytest.approx([-3.5, -3.5])] * 2


def test_running_loss_weighting_starts_at_1_and_follows_one_over_the_mean_loss() -> None:
    module = build_loss_weighting(StudentConfig(weighting="running"), HEADS)
    assert isinstance(module, RunningLossWeighting)
    losses = {"slow": torch.tensor(4.0), "fast": torch.tensor(0.5)}
    assert module(losses, {"slow": 1.0, "fast": 0.5}).item() == 4.25
    module.observe({"slow": 4.0, "fast": 0.5})
    assert final_weights(module) == pytest.approx({"slow": 0.25 / 1.125, "fast": 2 / 1.125, "foreign": 1.0})
    assert module(losses, {"slow": 1.0, "fast": 1.0}).item() == pytest.approx(2 / 1.125), "both count alike"
    for _ in range(400):
        module.observe({"slow": 1.0, "fast": 3.0, "foreign": 0.0})
    assert final_weights(module) == pytest.approx({"slow": 1.5, "fast": 0.5, "foreign": 1.0}, rel=1e-4)


@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_running_loss_weighting_does_not_depend_on_the_unit_of_a_loss(factor: float) -> None:
    """A loss c times as large gets 1 / c of the weight, relative to the others."""
    found = []
    for scale in (1.0, factor):
        module = RunningLossWeighting(["slow", "fast"])
        for step in range(1, 30):
            module.observe({"slow": 2.0 / step, "fast": scale * (1 + 1 / step)})
        weights = final_weights(module)
        found.append(weights["fast"] / weights["slow"])
    assert found[1] == pytest.approx(found[0] / factor, rel=1e-4)


def test_running_loss_weighting_of_a_loss_that_vanished_is_finite() -> None:
    module = RunningLossWeighting(["slow", "fast"])
    module.observe({"slow": 1e-12, "fast": 1.0})
    assert all(map(math.isfinite, final_weights(module).values()))
    assert sum(final_weights(module).values()) == pytest.approx(2)


def test_running_loss_weighting_is_part_of_the_training_state() -> None:
    module = RunningLossWeighting(["slow", "fast"])
    module.observe({"slow": 2.0, "fast": 1.0})
    again = RunningLossWeighting(["slow", "fast"])
    again.load_state_dict(module.state_dict())
    assert final_weights(again) == final_weights(module)
