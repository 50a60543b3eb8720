"""Promptable teachers in a recipe: whose boxes they may take, the order of steps, and labels of a pool."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import must
import tasks
from flows.plan.selection import Selection
from flows.plan.steps import build_steps
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import read_json
from pipeline.stores.labels import LabelShard, Value
from pipeline.stores.rle import mask_area
from tasks.teacher import Teacher
from tests.teachers.small_promptable import save_promptable
from tests.teachers.small_zeroshot import SHAPES, random_model, save

RECIPE = """
name: outlined
runtime: {{runner: inline, device: cpu, precision: "32", workers: 1}}
data:
  pool: {{kind: scenes, count: 3, seed: 1, size: 48}}
  world: {{kind: scenes, count: 8, seed: 2, size: 48, val: 2, tasks: [detection, masks, depth]}}
teachers:
  outlines: {{kind: promptable, boxes: {boxes}, weights: {weights}{more}}}
  finer: {{kind: promptable, boxes: {finer}, weights: {weights}}}
  things: {{kind: supervised, task: detection, data: world, backbone: test_resnet, image_size: 64, width: 16,
    proposals: 16, steps: 3, batch: 4, require: none, calibrate: null}}
  far: {{kind: supervised, task: depth, data: world, steps: 1}}
  words: {{kind: zeroshot, task: detection, weights: w, prompts: [car, van]}}
pool: [pool]
student: {{backbone: test_resnet, image_size: 32, width: 16, steps: 2, batch: 2, weighting: equal}}
"""
INLINE = ["runtime.runner=inline"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_promptable(tmp_path, "sam2")


def plan(weights: object, boxes: str = "things", finer: str = "outlines", more: str = "") -> dict[str, Any]:
    text = RECIPE.format(boxes=boxes, finer=finer, weights=f"'{weights}'", more=more)
    return {step.name: step for step in build_steps(parse_recipe(text, "outlined", ["teachers.words.weights=hub:a/b"]))}


def test_plan_makes_the_teacher_that_gives_boxes_first(weights: Path) -> None:
    steps = plan(weights)
    assert [name for name in steps if name.startswith("teacher.")] == [
        "teacher.things",
        "teacher.far",
        "teacher.words",
        "teacher.outlines",
        "teacher.finer",
    ]
    assert steps["teacher.outlines"].inputs == ("teacher.things",)
    assert steps["teacher.finer"].inputs == ("teacher.outlines",)


@pytest.mark.parametrize(
    ("boxes", "finer", "message"),
    [
        ("thing", "things", r"teachers\.outlines\.boxes 'thing' is unknown\. Did you mean 'things'\? Known: finer"),
        (
            "far",
            "things",
            r"teachers\.outlines\.boxes: teacher 'far' is of task 'depth', and makes no boxes: finer or ",
        ),
        (
            "outlines",
            "things",
            r"outlines\.boxes: 'outlines' is the teacher itself, which needs boxes of another one: ",
        ),
        (
            "finer",
            "outlines",
            r"outlines\.boxes: 'outlines' from 'finer' from 'outlines' take boxes in a circle, so that none of them "
            r"can begin: things or words would work\.",
        ),
    ],
)
def test_check_prompters_refuses_teachers_without_boxes(boxes: str, finer: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan("hub:a/b", boxes, finer)


def test_check_prompters_says_what_to_add_where_no_teacher_makes_boxes() -> None:
    text = """
name: lonely
data: {pool: {kind: scenes, count: 3, seed: 1, size: 48}}
teachers: {outlines: {kind: promptable, boxes: gabor, weights: "hub:a/b"}, gabor: {kind: analytic}}
pool: [pool]
student: {weighting: equal}
"""
    with pytest.raises(ConfigError, match=r"'gabor' is of task 'texture', .*: add a teacher of the task detection or"):
        build_steps(parse_recipe(text, "lonely"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (", threshold: 1.5", r"teachers\.outlines\.threshold: .*less than or equal to 1"),
        (", max_boxes: 0", r"teachers\.outlines\.max_boxes: .*greater than or equal to 1"),
        (", task: detection", r"teachers\.outlines\.task: input should be 'masks'"),
        (", require: {ap: 0.3}", r"outlines\.require is .*; write teachers\.outlines\.calibrate: \{data: SET\}"),
        (", calibrate: {data: pool}", r"set 'pool'"),
    ],
)
def test_plan_refuses_what_a_promptable_teacher_can_not_do(more: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan("hub:a/b", more=more)


def test_plan_compares_classes_with_those_of_the_boxes() -> None:
    with pytest.raises(ConfigError, match=r"labels of set 'world' do not fit teacher 'outlines': classes differ"):
        plan("hub:a/b", boxes="words", more=", calibrate: {data: world}")


def test_plan_refuses_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teachers\.outlines\.weights: .*nowhere.*no such file or folder"):
        plan(tmp_path / "nowhere")


def write_recipe(folder: Path, weights: object, *, boxes: str = "things", more: str = ", threshold: 0.02") -> Path:
    """Write a recipe of two teachers: the last ones are left out."""
    lines = RECIPE.format(boxes=boxes, finer="", weights=f"'{weights}'", more=more).splitlines()
    left_out = ("  far:", "  finer:", "  words:")
    recipe = folder / "outlined.yaml"
    recipe.write_text("\n".join(line for line in lines if not line.startswith(left_out)), "utf-8")
    return recipe


def stored_labels(outcome: Any) -> dict[str, list[Value]]:
    """Return the labels of the pool's images by teacher."""
    label, found = outcome.artifacts["label"], {}
    for entry in label.load("labels.json", read_json):
        name = entry["teacher"]
        shard = LabelShard(label.external_file(entry["path"]), Teacher.load(outcome.artifacts[f"teacher.{name}"]).label)
        assert entry["failed"] == 0
        found[name] = [value for row in range(entry["rows"]) if (value := shard.value(row)) is not None]
    return found


def test_promptable_teacher_labels_a_pool_with_masks_of_stored_boxes(tmp_path: Path, weights: Path) -> None:
    recipe = write_recipe(tmp_path, weights)
    outcome = must.run(recipe, tmp_path / "root", INLINE, Selection(last="label"))
    found = stored_labels(outcome)
    assert tasks.label(Teacher.load(outcome.artifacts["teacher.outlines"]).space).task == "masks"
    assert Teacher.load(outcome.artifacts["teacher.outlines"]).space.classes == SHAPES
    assert sum(len(value["masks"]) for value in found["outlines"]) > 0
    for boxes, masks in zip(found["things"], found["outlines"], strict=True):
        kept = boxes["scores"] >= np.float32(0.02)
        for name in ("boxes", "scores", "classes"):  # both see a square of 64 pixels
            np.testing.assert_allclose(masks[name], boxes[name][kept], rtol=1e-4, atol=1e-3)
        assert all(mask_area(mask, (48, 48)) > 0 for mask in masks["masks"])
    shutil.rmtree(weights)  # the artifact has all that it needs
    model = must.load("outlines", None, tmp_path / "root", device="cpu", precision="32", workers=1)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    assert model.predict(image)["outlines"].value["size"].tolist() == [30, 40]


def test_promptable_teacher_is_made_again_with_the_teacher_of_its_boxes(tmp_path: Path, weights: Path) -> None:
    recipe, one = write_recipe(tmp_path, weights), Selection(last="teacher.outlines")
    before = must.run(recipe, tmp_path / "root", INLINE, one).artifacts["teacher.outlines"]
    moved = weights.rename(tmp_path / "moved")
    same = [*INLINE, f"teachers.outlines.weights={moved}"]
    assert must.run(recipe, tmp_path / "root", same, one).artifacts["teacher.outlines"].digest == before.digest
    after = must.run(recipe, tmp_path / "root", [*same, "teachers.things.steps=4"], one).artifacts["teacher.outlines"]
    assert after.digest != before.digest


@pytest.mark.parametrize(
    ("name", "kept"),
    [("config.json", 1), ("config.json", 0), ("processor_config.json", 0), ("model.safetensors", -100)],
)
def test_run_refuses_a_damaged_folder_before_its_first_step(
    tmp_path: Path, weights: Path, name: str, kept: int
) -> None:
    """`kept`: how much is left of the file; 0 for none of it."""
    file = weights / name
    if kept:
        file.write_bytes(file.read_bytes()[:kept])
    else:
        file.unlink()
    with pytest.raises(ConfigError, match=r"teachers\.outlines: .* can't be loaded as a masks model"):
        must.run(write_recipe(tmp_path, weights), tmp_path / "root", INLINE, Selection(last="teacher.outlines"))
    assert not (tmp_path / "root" / "artifacts" / "teacher.things").exists()


@pytest.mark.slow
def test_gate_measures_a_promptable_teacher_on_a_set_with_masks(tmp_path: Path, weights: Path) -> None:
    """Random weights find no shapes, so that any metric that is required is missed."""
    more = ", threshold: 0.02, calibrate: {data: world}, require: {ap: 0.9}"
    recipe = write_recipe(tmp_path, weights, more=more)
    with pytest.raises(DataError, match=r"Teacher 'outlines' may not label: ap is 0\.\d+ on its"):
        must.run(recipe, tmp_path / "root", INLINE, Selection(last="label"))
    made = must.run(recipe, tmp_path / "root", INLINE, Selection(last="teacher.outlines")).artifacts["teacher.outlines"]
    teacher = Teacher.load(made)
    assert teacher.scores.keys() == teacher.baseline.keys() == {"ap", "ap50"}
    assert (teacher.held_out, teacher.data) == (2, None)


@pytest.mark.slow
def test_promptable_teacher_makes_masks_of_what_words_find(tmp_path: Path) -> None:
    """A whole run with steps in processes of their own: OWLv2 finds boxes of words, of which SAM makes masks."""
    recipe = write_recipe(tmp_path, save_promptable(tmp_path, "sam"), more="")
    words = save(tmp_path, *random_model("owlv2"))
    text = recipe.read_text("utf-8")
    start, end = text.index("  things:"), text.index("pool: [")
    things = f"  things: {{kind: zeroshot, task: detection, weights: '{words}', prompts: {list(SHAPES)}}}\n"
    recipe.write_text(text[:start] + things + text[end:], "utf-8")
    outcome = must.run(recipe, tmp_path / "root", ["runtime.runner=process"])
    found = stored_labels(outcome)
    assert sum(len(value["masks"]) for value in found["outlines"]) > 0
    assert outcome.folder is not None
    assert "outlines" in (outcome.folder / "report.html").read().decode()
