"""Test that what the student starts from is always among the backbones that are measured, and once."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.plan.steps import build_steps
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from tests.flows.measured import MEASURED, steps_of


def probed(section: str, weights: str | None = None) -> list[str]:
    """Return the names of the starts that a recipe's probes measure, with weights for its student."""
    text = MEASURED.replace("student: {", f"student: {{weights: '{weights}', ") if weights else MEASURED
    assert (text == MEASURED) == (weights is None)
    steps = build_steps(parse_recipe(f"{text}evaluate: {{probes: [knn]{section}}}\n", "r"))
    return [step.config["start"]["name"] for step in steps if step.name.startswith("probe.")]


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "mine-v2.safetensors"
    path.write_bytes(b"weights")
    return str(path)


def test_measured_starts_have_the_students_own_weights(weights: str) -> None:
    assert probed("", weights) == ["scratch", "mine_v2", "student"]
    assert probed(", starts: [student]", weights) == ["mine_v2", "student"]
    assert probed(", starts: [teacher.masks]", weights) == ["mine_v2", "teacher.masks"]
    assert probed(", starts: [scratch]", weights) == ["scratch", "mine_v2"]


def test_measured_starts_have_random_weights_of_a_student_without_weights() -> None:
    assert probed("") == ["scratch", "student"]
    assert probed(", starts: [student]") == ["scratch", "student"]
    assert probed(", starts: [student, scratch]") == ["student", "scratch"], "the recipe's order"


def test_measured_starts_have_no_weights_twice(weights: str, tmp_path: Path) -> None:
    assert probed(f", starts: [student, '{weights}']", weights) == ["student", "mine_v2"]
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(b"weights")
    assert probed(f", starts: ['{copy}', student]", weights) == ["copy", "student"], "the same by another name"
    copy.write_bytes(b"others!")
    assert probed(f", starts: ['{copy}', student]", weights) == ["copy", "mine_v2", "student"]


def test_measured_starts_are_none_without_probes_and_finetuning() -> None:
    assert not [name for name in steps_of("evaluate: {starts: [student]}") if name.startswith(("probe", "finetune"))]


def test_measured_starts_name_students_weights_that_are_missing() -> None:
    with pytest.raises(ConfigError, match=r"student\.weights: weights 'no/such\.pth': no such file"):
        probed("", "no/such.pth")
