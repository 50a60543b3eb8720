"""Zero-shot teachers in a recipe: what it may say of prompts, their order, the gate, and labels of a pool."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import must
import tasks
from evaluation.report.formatting import teacher_scores
from flows.plan.selection import Selection
from flows.plan.steps import build_steps
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import read_json
from pipeline.stores.labels import LabelShard, LabelSpace
from tasks.teacher import Teacher
from teachers import zeroshot
from tests.teachers.small_zeroshot import SHAPES, random_model, save

RECIPE = """
name: words
data:
  pool: {{kind: scenes, count: 3, seed: 1, size: 48}}
  world: {{kind: scenes, count: 4, seed: 2, size: 48, val: 3, tasks: [classification, detection, segmentation]}}
teachers:
  things: {{kind: zeroshot, {teacher}}}
pool: [pool]
student: {{backbone: test_resnet, image_size: 32, width: 16, weighting: equal}}
"""
LISTED = "task: detection, weights: 'hub:google/owlv2-base-patch16', prompts: "


def plan(teacher: str) -> dict[str, Any]:
    return {step.name: step for step in build_steps(parse_recipe(RECIPE.format(teacher=teacher), "words"))}


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (LISTED + "{}", r"teachers\.things\.prompts: \{\} names no class: write phrases by class, as in \{car: \[car"),
        (LISTED + "car", r"teachers\.things\.prompts: 'car' names no class"),
        (LISTED + "{car: []}", r"prompts: class 'car' has no list of phrases, but \[\]: write \{car: \[car\]\}"),
        (LISTED + "{car: van}", r"prompts: class 'car' has no list of phrases, but 'van': write \{car: \[car\]\}"),
        (LISTED + "{car: null}", r"prompts: class 'car' has no list of phrases, but None"),
        (LISTED + "{car: ['']}", r"prompts: class 'car': '' is no phrase: write words"),
        (LISTED + "{car: [' ']}", r"prompts: class 'car': ' ' is no phrase"),
        (LISTED + "{car: [7]}", r"prompts: class 'car': 7 is no phrase: write words, in quotes"),
        (
            LISTED + "{car: [van, Van]}",
            r"prompts: the phrase 'Van' of class 'car' is there twice, the other one for 'car': say each thing once",
        ),
        (LISTED + "{car: [van], truck: ['van ']}", r"the phrase 'van ' of class 'truck' is there twice, .* for 'car'"),
        (LISTED + "{Cat: [cat face], cat: [kitten]}", r"things: .*the classes 'Cat' and 'cat' differ only by case"),
        (
            "task: segmentation, weights: w, prompts: [car], background: Car",
            r"things: .*the classes 'Car' and 'car' differ only by case",
        ),
        (
            "task: classification, weights: w, prompts: [car]",
            r"prompts name the class 'car' alone, .*: add the others, as in \{car: \[.*\]\}, or write task: multilabel",
        ),
        (LISTED + "[car, car]", r"prompts: the phrase 'car' of class 'car' is there twice"),
        (LISTED + "[car], classes: [van]", r"things: classes \['van'\] are not those of prompts, \['car'\]: leave"),
        (LISTED + "[car], templates: ['a {}']", r"templates \['a \{\}'\] are for classification and multilabel alone"),
        (LISTED + "[car], background: sky", r"background 'sky' is a class beside those of prompts, for segmentation"),
        (
            "task: segmentation, weights: w, prompts: [car], background: car",
            r"background 'car' is a class beside those of prompts",
        ),
        (
            "task: classification, weights: w, prompts: [car, van], templates: [a photo]",
            r"templates: 'a photo' has no one place for a phrase: write \{\} there, once",
        ),
        ("task: depth, weights: w, prompts: [car]", r"teachers\.things\.task: .*'classification'"),
    ],
)
def test_zeroshot_config_says_what_is_wrong_with_prompts(teacher: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(teacher)


def test_zeroshot_config_keeps_the_order_of_classes_where_keys_are_sorted() -> None:
    given = {"task": "detection", "weights": "w", "prompts": {"van": ["van"], "car": ["car", "taxi"]}}
    config = zeroshot.Config.model_validate(given)
    stored = json.loads(json.dumps(config.model_dump(mode="json"), sort_keys=True))
    read = zeroshot.Config.model_validate(stored)
    assert read.label_space() == config.label_space() == LabelSpace("detection", ("van", "car"))
    assert read.about() == config.about()
    assert config.about()["phrases"] == ["van", "car", "taxi"]
    assert config.about()["class_of_phrase"] == [0, 1, 1]
    turned = {**given, "prompts": dict(reversed(given["prompts"].items()))}  # type: ignore[attr-defined]
    assert zeroshot.Config.model_validate(turned).model_dump() != config.model_dump()


def test_zeroshot_config_takes_names_for_phrases() -> None:
    listed = zeroshot.Config(task="segmentation", weights="w", prompts=["car", "sky"], background="rest")
    assert listed.label_space().classes == ("rest", "car", "sky")
    assert listed.about()["phrases"] == ["car", "sky"]
    assert listed.about()["templates"] == ["{}"]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            LISTED + "[car], require: {ap: 0.3}",
            r"teachers\.things\.require is \{'ap': 0\.3\}, but only teachers that are trained here, or calibrated on a "
            r"named set, are measured before they label; write teachers\.things\.calibrate: \{data: SET\}, or leave it",
        ),
        (
            LISTED + "[car], require: {ap: 0.3}, calibrate: {data: world}",
            r"labels of set 'world' do not fit teacher 'things': classes differ",
        ),
    ],
)
def test_plan_refuses_a_requirement_that_cannot_be_measured(teacher: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(teacher)


def test_plan_takes_a_requirement_on_a_calibrated_published_teacher() -> None:
    step = plan(LISTED + f"{list(SHAPES)}, require: {{ap: 0.3}}, calibrate: {{data: world}}")["teacher.things"]
    assert step.config["calibrate"] == "world"
    assert step.inputs == ("data.world",)


def test_run_refuses_a_metric_that_the_task_does_not_have(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "owlv2", "task: detection, require: {map: 0.3}, calibrate: {data: world}")
    with pytest.raises(ConfigError, match=r"teachers\.things: require: metric 'map' is unknown\. .*ap"):
        must.run(recipe, tmp_path / "root", ["runtime.runner=inline"])


def write_recipe(folder: Path, name: str, teacher: str) -> Path:
    published = save(folder, *random_model(name))
    recipe = folder / "words.yaml"
    recipe.write_text(RECIPE.format(teacher=f"weights: '{published}', prompts: {list(SHAPES)}, {teacher}"), "utf-8")
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "teacher", "check"),
    [
        ("owlv2", "task: detection", lambda value: len(value["boxes"]) > 0),
        ("clipseg", "task: segmentation, background: background", lambda value: value["classes"].shape == (16, 16)),
        ("siglip", "task: classification", lambda value: abs(value["probs"].sum() - 1) < 1e-5),
    ],
)
def test_zeroshot_teacher_labels_a_pool(name: str, teacher: str, check: Callable[[Any], bool], tmp_path: Path) -> None:
    outcome = must.run(
        write_recipe(tmp_path, name, teacher), tmp_path / "root", ["runtime.runner=inline"], Selection(last="label")
    )
    label = outcome.artifacts["label"]
    [entry] = label.load("labels.json", read_json)
    shard = LabelShard(label.external_file(entry["path"]), tasks.label(LabelSpace.from_json(space_of(outcome))))
    assert (entry["rows"], entry["failed"]) == (3, 0)
    for row in range(3):
        value = shard.value(row)
        assert value is not None
        assert check(value)


def space_of(outcome: Any) -> Any:
    return outcome.artifacts["teacher.things"].load("teacher.json", read_json)["space"]


@pytest.mark.slow
def test_gate_measures_a_calibrated_published_teacher(tmp_path: Path) -> None:
    """Random weights find no shapes, so that any metric that is required is missed."""
    calibrated = "task: detection, calibrate: {data: world}, require: {ap: 0.9}"
    recipe = write_recipe(tmp_path, "owlv2", calibrated)
    with pytest.raises(DataError, match=r"Teacher 'things' may not label: ap is 0\.\d+ on its"):
        must.run(recipe, tmp_path / "root", ["runtime.runner=inline"], Selection(last="label"))
    outcome = must.run(recipe, tmp_path / "root", ["runtime.runner=inline"], Selection(last="teacher.things"))
    made = outcome.artifacts["teacher.things"]
    teacher = Teacher.load(made)
    assert teacher.scores.keys() == teacher.baseline.keys() == {"ap", "ap50"}
    assert (teacher.held_out, teacher.data) == (3, None)
    assert made.counts["split"] == "val"
    assert made.counts["scores"] == teacher.scores
    lenient = ["runtime.runner=inline", "teachers.things.require=none"]
    assert must.run(recipe, tmp_path / "root", lenient, Selection(last="label")).artifacts["label"]


@pytest.mark.slow
def test_published_teacher_has_no_baseline_on_a_set_without_training_images(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "owlv2", "task: detection, calibrate: {data: world}")
    overrides = ["runtime.runner=inline", "data.world.count=0"]
    made = must.run(recipe, tmp_path / "root", overrides, Selection(last="label")).artifacts["teacher.things"]
    teacher = Teacher.load(made)
    assert teacher.scores.keys() == {"ap", "ap50"}
    assert teacher.baseline == {}
    assert teacher_scores(made.counts) == f"ap {teacher.scores['ap']:.3f}, 3 held-out images"
