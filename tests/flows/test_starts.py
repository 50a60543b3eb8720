"""Weights of another model than the backbone: reported by the doctor, and before the first step of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

import must
from cli.doctor import examine
from flows.plan.resolve import resolve
from flows.plan.run_plan import plan_run
from flows.plan.selection import Selection
from flows.run.step_runner import preflight
from pipeline.errors import ConfigError
from pipeline.models import readout
from pipeline.models.timm_models import create_timm_model
from pipeline.recipe.reader import parse_recipe, read_recipe
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from tests.flows.measured import MEASURED

STAGE = "stages: [{name: first, method: simclr, data: [pool], batch: 4, steps: 1, start: 'FILE'}]\n"
COMPARED = """
compare: {all: {data: [kinds], methods: {simclr: {method: simclr}}, starts: ['FILE', student], steps: [1], batch: 4}}
"""
RECIPES = {
    "student": MEASURED.replace("student: {", "student: {weights: 'FILE', "),
    "teachers.masks": MEASURED.replace("data: world, ", "data: world, weights: 'FILE', "),
    "stages.first": MEASURED + STAGE,
    "evaluate.starts: mine": MEASURED + "evaluate: {probes: [knn], starts: [student, 'FILE']}\n",
    "compare.all.starts: mine": MEASURED + COMPARED,
}
"""Recipes that name a file of weights for a test_resnet, by the place where they do."""


def recipe_with(place: str, weights: str, folder: Path) -> Path:
    """Write a recipe with a file of weights of the timm model `weights`."""
    file, recipe = folder / "mine.safetensors", folder / "recipe.yaml"
    save_file(create_timm_model(weights, 32).state_dict(), file)
    recipe.write_text(RECIPES[place].replace("FILE", str(file)), "utf-8")
    assert str(file) in recipe.read_text("utf-8")
    return recipe


def problems(recipe: Path, root: Path) -> dict[str, str]:
    """Return what the doctor finds wrong, by place."""
    return {what: found for fine, what, found in examine(str(root), recipe) if fine is False}


@pytest.mark.parametrize("place", RECIPES)
def test_weights_of_another_model_are_refused_before_the_first_step(place: str, tmp_path: Path) -> None:
    recipe, root = recipe_with(place, "test_efficientnet", tmp_path), tmp_path / "root"
    found = problems(recipe, root)
    assert list(found) == [place]
    assert f"{tmp_path / 'mine.safetensors'}, for a 'test_resnet': not weights of this model" in found[place]
    assert "Name weights of a 'test_resnet', or the model that these are of." in found[place]
    with pytest.raises(ConfigError) as raised:
        must.run(recipe, root, None, Selection("compare" if place.startswith("compare") else None))
    assert str(raised.value) == f"{place}: {found[place]}"
    assert not list(root.glob("artifacts/*"))


def test_doctor_reports_wrong_weights_of_several_methods_once(tmp_path: Path) -> None:
    place = "compare.all.starts: mine"
    recipe = recipe_with(place, "test_efficientnet", tmp_path)
    several = "methods: {byol: {method: byol}, simclr: {method: simclr}}"
    text = recipe.read_text("utf-8").replace("methods: {simclr: {method: simclr}}", several)
    recipe.write_text(text.replace("', student]", "']"), "utf-8")
    assert list(problems(recipe, tmp_path / "root")) == [place]


def test_doctor_reports_errors_of_two_sections(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(MEASURED.replace("backbone: test_resnet", "backbone: test_resnt"), "utf-8")
    assert list(problems(tmp_path / "recipe.yaml", tmp_path / "root")) == ["teachers.masks", "student"]


def test_preflight_tries_the_backbones_of_what_is_still_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(readout, "try_training_step", lambda *arguments: tried.append(arguments))
    text = MEASURED.replace("batch: 4", "batch: 4, accumulate: 2").replace("image_size: 32", "image_size: 64", 1)
    recipe = parse_recipe(text, "measured")
    plan = plan_run(recipe, Root.of(tmp_path))
    models = plan.resolved.models()
    todo = plan.still_to_make(models)
    assert {"teachers.masks", "student"} <= todo
    runtime = Runtime(Root.of(tmp_path), "cpu", "32", 1)
    preflight(recipe.runtime, {"teachers.masks": models["teachers.masks"]}, todo, runtime)
    preflight(recipe.runtime, models, {"student"}, runtime)
    assert tried == [("test_resnet", 64, 2, "cpu", False), ("test_resnet", 32, 2, "cpu", False)]


@pytest.mark.parametrize("place", RECIPES)
def test_preflight_accepts_weights_of_the_backbone(place: str, tmp_path: Path) -> None:
    recipe, root = recipe_with(place, "test_resnet", tmp_path), tmp_path / "root"
    assert problems(recipe, root) == {}
    resolved = resolve(read_recipe(recipe))
    devices = preflight(
        resolved.recipe.runtime, resolved.models(), set(resolved.models()), Runtime(Root.of(root), "cpu", "32", 1)
    )
    assert devices.gpus == []
