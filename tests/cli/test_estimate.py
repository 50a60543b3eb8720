"""The doctor's estimate of times and memory: it grows with images, steps and the size of the images."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.doctor import examine
from cli.estimate import StepCost, estimate, measure_step
from pipeline.recipe.reader import parse_recipe
from tests.flows.tiny import RECIPE, TRAIN_STEPS

BUDGET_S = 0.05


def test_measure_step_counts_what_is_kept_for_the_backward_pass() -> None:
    small, large = (measure_step("test_resnet", side, "cpu", BUDGET_S) for side in (32, 64))
    assert small.seconds > 0
    assert small.forward_seconds > 0
    assert small.parameters == large.parameters > 1000
    assert 3.5 < large.activations / small.activations < 4.5


def test_measure_step_counts_less_with_gradient_checkpointing() -> None:
    plain, other = (measure_step("test_vit", 64, "cpu", 0.0, checkpointed) for checkpointed in (False, True))
    assert other.activations < plain.activations / 2


def test_step_cost_memory_has_a_part_for_weights_and_one_for_images() -> None:
    cost = StepCost(seconds=0.1, forward_seconds=0.02, activations=10, parameters=100)
    assert (cost.memory(0, frozen=False), cost.memory(5, frozen=False)) == (1600, 1665)


def test_step_cost_of_a_frozen_backbone_has_no_gradients() -> None:
    cost = StepCost(seconds=0.1, forward_seconds=0.02, activations=10, parameters=100)
    assert cost.memory(5, frozen=True) == pytest.approx(415)
    assert (cost.with_heads(frozen=True), cost.with_heads(frozen=False)) == pytest.approx((0.05, 0.13))


def test_estimate_has_a_line_for_each_training_and_one_for_all() -> None:
    recipe = parse_recipe(RECIPE, "tiny")
    lines = dict(estimate(recipe, {"world": 10, "pool": 36}, "cpu"))
    assert list(lines) == ["teachers.masks", "student", "all trainings"]
    assert lines["student"].startswith(f"{TRAIN_STEPS} steps of 4 images: about ")
    assert "a GPU needs about" in lines["all trainings"]


def test_doctor_estimates_only_if_asked_to(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE, "utf-8")
    found = {what for _, what, _ in examine(str(tmp_path), recipe)}
    assert {"data.world", "data.world.segmentation", "teachers.masks"} <= found
    assert not any(what.startswith("time of") for what in found)
    assert "time of student" in {what for _, what, _ in examine(str(tmp_path), recipe, trial=True)}
