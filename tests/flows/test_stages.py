"""Stages: how they are planned and run, and wrong recipes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import must
from flows.plan.selection import Selection
from flows.plan.steps import build_steps
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from pipeline.recipe.recipe import Recipe
from tests.flows.tiny import RECIPE, STEPS, TRAIN_STEPS, output_without_heavy_imports

STAGES = """
stages:
  - {name: first, method: simclr, data: [pool], batch: 4, steps: 3}
  - {name: second, method: mocov2, data: [pool, world], batch: 4, steps: 2, trainable: norm}
"""
POOLS, TRAINED = ["pool.first", "pool.second"], ["stage.first", "stage.second"]
MADE = [*POOLS, *TRAINED]


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    path = tmp_path / "staged.yaml"
    path.write_text(RECIPE + STAGES, encoding="utf-8")
    return path


def to_run(recipe: Path, root: Path, *overrides: str) -> list[str]:
    return [each.step.name for each in must.plan(recipe, root, list(overrides)) if each.artifact is None]


def test_stages_are_planned_run_and_reported(staged: Path, finished_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(finished_root, tmp_path / "copy")
    planned = must.plan(staged, root)
    assert [each.step.name for each in planned] == [*STEPS[:3], *POOLS, *STEPS[3:-1], *TRAINED, "evaluate"]
    inputs = {each.step.name: each.step.inputs for each in planned}
    assert inputs["pool.first"] == inputs["pool.second"] == ("data.world", "data.pool")
    assert inputs["stage.first"] == ("student", "pool.first", "data.pool")
    assert inputs["stage.second"] == ("stage.first", "pool.second", "data.pool", "data.world")
    assert to_run(staged, root) == MADE
    outcome = must.run(staged, root)
    assert outcome.ran == 4
    assert outcome.folder
    report = (outcome.folder / "report.html").read().decode()
    assert "<h3>Stages</h3>" in report
    assert "could not be shown" not in report
    about = json.loads((root / outcome.artifacts["stage.second"].path / "backbone.json").read_text("utf-8"))
    assert (about["backbone"], about["image_size"]) == ("test_resnet", 32)
    assert to_run(staged, root) == []
    assert to_run(staged, root, "stages.second.steps=3") == ["stage.second"]
    assert to_run(staged, root, "stages.first.lr=0.1") == ["stage.first", "stage.second"]
    assert must.run(staged, root, ["stages.second.steps=3"], Selection("stage.second")).ran == 1


def test_stage_is_a_step_that_several_processes_train(staged: Path, tmp_path: Path) -> None:
    trained = {each.step.name for each in must.plan(staged, tmp_path / "root") if each.step.kind.trains}
    assert trained == {"teacher.masks", "student", *TRAINED}


def test_stage_is_not_trained_again_for_images_it_does_not_see(tmp_path: Path) -> None:
    alone = "stages: [{name: a, method: simclr, data: [pool], start: scratch, batch: 4, steps: 1}]"
    path, last = tmp_path / "alone.yaml", Selection("stage.a")
    path.write_text(RECIPE + alone, encoding="utf-8")
    first = must.run(path, tmp_path / "root", steps=last)
    again = must.run(path, tmp_path / "root", ["data.world.count=14"], last)
    assert again.ran == 2, "the set and the stage's pool"
    assert again.artifacts["data.world"].digest != first.artifacts["data.world"].digest
    assert again.artifacts["stage.a"].fingerprint == first.artifacts["stage.a"].fingerprint
    assert must.run(path, tmp_path / "root", ["data.pool.count=37"], last).ran == 3


def test_plan_without_stages_imports_no_torch(recipe: Path, finished_root: Path) -> None:
    output_without_heavy_imports("plan", recipe, "--root", finished_root)


def steps(stages: str) -> dict[str, tuple[str, ...]]:
    recipe = parse_recipe(RECIPE + "stages: " + stages, "recipe")
    assert isinstance(recipe, Recipe)
    return {step.name: step.inputs for step in build_steps(recipe) if step.name.startswith("stage.")}


def test_stage_starts_where_the_recipe_says() -> None:
    first = "{name: a, method: simclr, data: [pool]}"
    assert steps(f"[{first}, {{name: b, method: simclr, data: [pool], start: student}}]")["stage.b"][0] == "student"
    scratch = "{name: b, method: simclr, data: [pool], start: scratch, backbone: resnet18}"
    assert steps(f"[{first}, {scratch}]")["stage.b"] == ("pool.b", "data.pool")
    third = "{name: c, method: simclr, data: [pool], start: a}"
    assert steps(f"[{first}, {scratch}, {third}]")["stage.c"][0] == "stage.a"
    assert steps(f"[{scratch}, {{name: c, method: simclr, data: [pool]}}]")["stage.c"][0] == "stage.b"


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (
            "[{name: a, method: simcl, data: [pool]}]",
            r"stages\.a\.method: 'simcl' is not a method\. Did you mean 'simclr'",
        ),
        ("[{name: a, method: simclr, data: [pool], temprature: 1}]", r"stages\.a\.temprature: .* mean 'temperature'"),
        ("[{name: a, method: simclr, data: [pol]}]", r"stage 'a' names 'pol', not under data; there are world, pool"),
        (
            "[{name: a, method: simclr, data: [pool], start: stage.b}]",
            r"stages\.a\.start 'stage\.b' is unknown\. Known: ",
        ),
        ("[{name: a, method: simclr, data: [pool], start: b}]", r"stages\.a\.start 'b' is unknown\. Known: "),
        (
            "[{name: a, method: simclr, data: [pool]}, {name: a, method: byol, data: [pool]}]",
            r"two stages are called 'a'",
        ),
        (
            "[{name: a, method: simclr, data: [pool], backbone: resnet18}]",
            r"backbone is 'resnet18', but it starts from 'student', which has a 'test_resnet'",
        ),
        (
            "[{name: a, method: simclr, data: [pool], augment: {area: [1, 0.5]}}]",
            r"area \[1.0, 0.5\]: the smallest share",
        ),
        ("[{name: student, method: simclr, data: [pool]}]", r"can't be called 'student'"),
        ("[{name: a, method: simclr, data: []}]", r"stages\.a\.data: list should have at least 1 item"),
        ("[{name: a, method: simclr, data: [pool], labels: {metod: supcon}}]", r"labels\.metod: .* mean 'method'"),
        ("[{method: simclr, data: [pool]}]", r"stages\.0\.name: missing"),
        ("[simclr]", r"stages\.0: "),
        ("[{name: a, data: [pool]}]", r"stages\.a\.method: None is not a method"),
    ],
)
def test_parse_recipe_refuses_wrong_stages(stages: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_recipe(RECIPE + "stages: " + stages, "recipe")


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("data: [pool], labels: {}", r"the sets pool have 0 kinds of class labels"),
        (
            "data: [kinds], labels: {classes: 4}",
            r"stages\.\w+: labels: classes is 4, which does not divide the 6 classes .*: 2 or 3 or 6 would",
        ),
        (
            "data: [kinds], batch: 8, labels: {}",
            r"6 classes x 4 images make 24 labelled images a step, .* at most 12: batch: 14 would work",
        ),
    ],
)
def test_plan_refuses_wrong_labels_of_a_stage(stage: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    kinds = "  kinds: {kind: scenes, count: 6, seed: 3, size: 48, tasks: [classification]}\nshard_images"
    text = RECIPE.replace("shard_images", kinds) + f"stages: [{{name: a, method: simclr, {stage}}}]"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        must.plan(path, tmp_path / "root")


def test_override_of_a_stage_needs_its_name() -> None:
    text = RECIPE + STAGES
    assert parse_recipe(text, "recipe", ["stages.second.steps=9"]).stages[1].steps == 9
    with pytest.raises(ConfigError, match=r"-o 'stages\.secnd\.steps=9': 'secnd' is unknown\. Did you mean 'second'"):
        parse_recipe(text, "recipe", ["stages.secnd.steps=9"])
    with pytest.raises(ConfigError, match=r"-o 'stages\.first=9': stages is a list: name the section to change"):
        parse_recipe(text, "recipe", ["stages.first=9"])


def test_run_refuses_a_method_that_cannot_use_the_backbone(tmp_path: Path) -> None:
    path = tmp_path / "mae.yaml"
    path.write_text(RECIPE + "stages: [{name: a, method: mae, data: [pool]}]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"stages\.a: method 'mae' .* which 'test_resnet' is not"):
        must.run(path, tmp_path / "root")
    assert not (tmp_path / "root" / "artifacts").exists()


VALIDATED = "{every: 2, keep: best, patience: 9}"


def test_trainings_are_measured_on_the_way(tmp_path: Path) -> None:
    """Teacher, student and stage, on the split `val` of the sets that have labels."""
    kinds = (
        "  kinds: {kind: scenes, count: 12, val: 6, test: 4, seed: 3, size: 48, tasks: [classification]}\nshard_images"
    )
    text = RECIPE.replace("shard_images", kinds).replace("count: 12, test: 2,", "count: 12, val: 2, test: 2,")
    text = text.replace(f"steps: {TRAIN_STEPS}", f"steps: 4, validate: {VALIDATED}")
    text += f"stages: [{{name: a, method: simclr, data: [kinds], batch: 4, steps: 4, validate: {VALIDATED}}}]"
    path, root = tmp_path / "recipe.yaml", tmp_path / "root"
    path.write_text(text, encoding="utf-8")
    run = must.run(path, root)
    metrics = {"teacher.masks": "miou", "student": "miou", "stage.a": "knn accuracy"}
    for name, metric in metrics.items():
        [manifest] = [json.loads(each.read_text("utf-8")) for each in root.glob(f"artifacts/{name}/*/manifest.json")]
        found = manifest["counts"]["validation"]
        assert (found["metric"], found["validations"], found["kept"]) == (metric, 2, "best")
        assert found["step"] in (2, 4)
    report = next(root.glob("runs/*/report.html")).read_text("utf-8")
    assert all(f"{name}: validation" in report for name in ("masks", "on the way", "a"))
    assert run
