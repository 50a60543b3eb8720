"""Calibrated teachers from the recipe to the labels: an over-confident one, published weights, and too few images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch

import tasks
from flows.plan.steps import build_steps
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import Artifact, Inputs, Step, read_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.stores.labels import IGNORE, LabelShard
from student.dataset import StudentHead
from student.threshold_report import count_kept
from tasks import training
from tasks.teacher import Teacher

RECIPE = """
name: calibrated
data:
  pool: {kind: scenes, count: 4, seed: 1, size: 48}
  few: {kind: scenes, count: 4, seed: 3, size: 48, val: 2, tasks: [segmentation, depth]}
  world: {kind: scenes, count: 6, seed: 2, size: 48, val: 14, tasks: [segmentation, depth]}
teachers:
  masks: &teacher {kind: supervised, task: segmentation, data: world, backbone: test_resnet, image_size: 32, width: 16,
    steps: 30, batch: 4, lr: 0.003, require: none}
  raw: {<<: *teacher, calibrate: null}
  small: {<<: *teacher, data: few}
  helped: {<<: *teacher, data: few, calibrate: {data: world}}
  depth: {<<: *teacher, task: depth}
pool: [pool]
student: {backbone: test_resnet, image_size: 32, width: 16, weighting: equal}
"""
OVER_CONFIDENT = 12.0
"""Factor on the logits."""
THRESHOLD = 0.7


def recipe_with(teacher: str) -> str:
    return RECIPE.replace("pool: [pool]", f"  more: {teacher}\npool: [pool]")


@dataclasses.dataclass
class Made:
    """The steps of the recipe, and the artifacts of those that were made, with their inputs."""

    steps: dict[str, Step]
    workspace: Workspace
    runtime: Runtime
    artifacts: dict[str, Artifact]

    def make(self, step: Step) -> Artifact:
        for name in step.inputs:
            if name not in self.artifacts:
                self.make(self.steps[name])
        inputs = {name: self.artifacts[name] for name in step.inputs}
        self.artifacts[step.name], _ = self.workspace.get_or_make(step, Inputs(inputs, self.runtime))
        return self.artifacts[step.name]

    def teacher(self, name: str) -> Teacher:
        return Teacher.load(self.make(self.steps[f"teacher.{name}"]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The recipe, all of whose networks are made over-confident after their training."""
    root = Root.of(tmp_path_factory.mktemp("calibrated"))
    steps = {step.name: step for step in build_steps(parse_recipe(RECIPE, "calibrated"))}
    train: Callable[..., Any] = training.train_network

    def train_over_confident(network: Any, *arguments: Any) -> Any:
        trained = train(network, *arguments)
        with torch.no_grad():
            for head in network.heads.values():
                head.layers[-1].weight *= OVER_CONFIDENT
                head.layers[-1].bias *= OVER_CONFIDENT
        return trained

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_network", train_over_confident)
        yield Made(steps, Workspace(root), Runtime(root, "cpu", "32", 1), {})


def test_teacher_step_reads_the_set_that_it_is_calibrated_on(made: Made) -> None:
    inputs = {name: step.inputs for name, step in made.steps.items() if name.startswith("teacher.")}
    assert inputs["teacher.masks"] == ("data.world",)
    assert inputs["teacher.helped"] == ("data.few", "data.world")
    calibrated = {name: step.config.get("calibrate") for name, step in made.steps.items() if name in inputs}
    assert calibrated == {
        "teacher.masks": "world",
        "teacher.raw": None,
        "teacher.small": "few",
        "teacher.helped": "world",
        "teacher.depth": None,
    }


def test_threshold_of_an_over_confident_teacher_keeps_what_its_probabilities_say(made: Made) -> None:
    calibration = made.teacher("masks").calibration
    assert calibration is not None
    assert calibration.reliability is not None
    assert calibration.reliability.raw.ece > 0.1
    assert calibration.reliability.calibrated.ece < calibration.reliability.raw.ece / 2
    label = made.make(made.steps["label"])
    entries = label.load("labels.json", read_json)
    [entry] = [entry for entry in entries if entry["teacher"] == "masks"]
    file = label.external_file(entry["path"])
    shard = LabelShard(file, tasks.label(made.teacher("masks").space))
    assert shard.label.calibration == calibration, "as the file states it"
    kept = raw_kept = total = 0
    for row in range(entry["rows"]):
        value, cut = shard.value(row), shard.value(row, THRESHOLD)
        assert value is not None
        assert cut is not None
        probable = calibration(value["confidence"]) >= THRESHOLD - 1 / 510
        np.testing.assert_array_equal(cut["classes"] != IGNORE, probable)
        kept, raw_kept, total = (
            kept + probable.sum(),
            raw_kept + (value["confidence"] >= THRESHOLD).sum(),
            total + probable.size,
        )
    assert raw_kept > 2 * kept > 0, "the scores promised more"
    check_columns(str(file.path), shard)
    report = threshold_report(made, THRESHOLD)
    assert (report["calibrated"], sum(report["kept"]), sum(report["held"])) == (True, kept, total)


def check_columns(path: str, shard: LabelShard) -> None:
    """SQL sees the probabilities that the labels are read by."""
    columns = duckdb.execute(f"select probability, confidence from '{path}'").fetchall()
    for number, (probability, confidence) in enumerate(columns):
        value = shard.value(number)
        assert value is not None
        assert probability == pytest.approx(shard.label.calibrate(value["confidence"]).mean(), abs=0.02)
        assert confidence == pytest.approx(value["confidence"].mean(), abs=0.01)


def threshold_report(made: Made, threshold: float) -> dict[str, Any]:
    teacher = made.teacher("masks")
    inputs = Inputs({name: made.artifacts[name] for name in ("pool", "label", "data.pool")}, made.runtime)
    return count_kept({"masks": StudentHead("masks", teacher.space, None, None, threshold)}, inputs)["masks"]


def test_teacher_is_calibrated_only_where_that_is_asked_for_and_possible(made: Made) -> None:
    masks, raw, depth = (made.teacher(name) for name in ("masks", "raw", "depth"))
    assert raw.calibration is depth.calibration is None
    assert raw.scores.keys() == masks.scores.keys() == {"miou", "pixel_accuracy"}
    counts = {name: made.artifacts[f"teacher.{name}"].counts for name in ("masks", "raw", "depth")}
    assert not any("calibration" in counts[name] for name in ("raw", "depth"))
    assert counts["masks"]["calibration"]["images"] == 14
    assert counts["masks"]["calibration"]["ece"] < counts["masks"]["calibration"]["ece_raw"]


def test_teacher_with_few_held_out_images_stays_raw_and_says_why(made: Made) -> None:
    small = made.teacher("small")
    assert small.calibration is None
    assert small.scores
    reason = made.artifacts["teacher.small"].counts["uncalibrated"]
    assert reason.endswith("on 2 held-out images; it takes 100, on 10 images")


def test_teacher_can_be_calibrated_on_another_set(made: Made) -> None:
    helped = made.teacher("helped")
    assert helped.calibration is not None
    assert helped.calibration.reliability is not None
    assert helped.calibration.reliability.dataset == "world"
    assert made.artifacts["teacher.helped"].counts["split"] == "val"


def test_published_weights_are_calibrated_on_a_named_set(made: Made, tmp_path: Path) -> None:
    """The same network and the same images as the teacher's own: the same calibration."""
    masks = made.make(made.steps["teacher.masks"])
    weights = Path(str(masks)) / "model.safetensors"
    text = recipe_with(f"{{kind: checkpoint, task: segmentation, weights: {weights}, calibrate: {{data: world}}}}")
    step = {step.name: step for step in build_steps(parse_recipe(text, "calibrated"))}["teacher.more"]
    assert step.inputs == ("data.world",)
    assert Teacher.load(made.make(step)).calibration == made.teacher("masks").calibration
    space = made.teacher("masks").space
    assert json.loads(Path(weights).with_suffix(".json").read_text("utf-8"))["heads"] == {"masks": space.to_json()}


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            "{kind: analytic, calibrate: {data: world}}",
            r"teachers\.more\.calibrate: labels of task 'texture' have no score",
        ),
        (
            "{kind: analytic, calibrate: {}}",
            r"teachers\.more\.calibrate names no set, and kind 'analytic' is not trained",
        ),
        ("{kind: supervised, task: depth, data: world, calibrate: {data: few}}", "'depth' have no scores to calibrate"),
        (
            "{kind: supervised, task: segmentation, data: world, calibrate: {data: pool}}",
            r"teachers\.more\.calibrate: labels of set 'pool' do not fit teacher 'more': the set has no labels for",
        ),
        (
            "{kind: pretrained, model: test_resnet, weights: timm, classes: [a, b], calibrate: {data: world}}",
            r"labels of set 'world' do not fit teacher 'more': the set has no labels for 'classification'",
        ),
        (
            "{kind: torchvision, task: segmentation, model: lraspp_mobilenet_v3_large, weights: torchvision,"
            " calibrate: {data: world}}",
            r"labels of set 'world' do not fit teacher 'more': classes differ: 21 \(__background__",
        ),
        (
            "{kind: supervised, task: segmentation, data: world, calibrate: {data: wrold}}",
            r"teachers\.more\.calibrate\.data names 'wrold', not under data; there are pool, few, world",
        ),
    ],
)
def test_set_that_does_not_fit_is_refused_by_name_before_a_run(teacher: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_steps(parse_recipe(recipe_with(teacher), "calibrated"))
