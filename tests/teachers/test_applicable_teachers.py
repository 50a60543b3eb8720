"""Applicability from the recipe to the labels and to what the student reads: of scenes and slides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.plan.steps import build_steps
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Artifact, Inputs, Step, read_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from student.dataset import heads_of, student_dataset, student_shards
from student.threshold_report import count_kept
from tasks.teacher import APPLICABILITY_FILE

RECIPE = """
name: applicable
data:
  pool: {{kind: scenes, count: 30, seed: 1, size: 48}}
  slides: {{kind: folder, path: {slides}}}
  world: {{kind: scenes, count: 40, seed: 2, size: 48, val: 20, tasks: [segmentation, depth]}}
  few: {{kind: scenes, count: 4, seed: 3, size: 48, val: 2, tasks: [segmentation]}}
teachers:
  masks: &teacher {{kind: supervised, task: segmentation, data: world, backbone: test_resnet, image_size: 32, width: 16,
    steps: 20, batch: 4, lr: 0.003, require: none}}
  small: {{<<: *teacher, data: few, steps: 1}}
  elsewhere: {{<<: *teacher, data: few, domain: world, steps: 1}}
  scenes: {{<<: *teacher, labels: [pool], steps: 1}}
  gabor: {{kind: analytic, image_size: 32, wavelengths: [4.0]}}
pool: [pool, slides]
student: {{backbone: test_resnet, image_size: 32, width: 16, weighting: equal}}
"""


def recipe(slides: Path) -> str:
    return RECIPE.format(slides=slides)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of another kind: nearly white, as slides under a microscope are."""
    folder, rng = tmp_path_factory.mktemp("slides"), np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(230, 256, (48, 48, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def made(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The artifacts of the recipe's steps up to the labels."""
    root = Root.of(tmp_path_factory.mktemp("applicable"))
    steps = {step.name: step for step in build_steps(parse_recipe(recipe(slides), "applicable"))}
    runtime, workspace, artifacts = Runtime(root, "cpu", "32", 1), Workspace(root), dict[str, Artifact]()

    def make(step: Step) -> None:
        for name in step.inputs:
            if name not in artifacts:
                make(steps[name])
        inputs = {name: artifacts[name] for name in step.inputs}
        artifacts[step.name], _ = workspace.get_or_make(step, Inputs(inputs, runtime))

    make(steps["label"])
    return Inputs(artifacts, runtime)


def applicability(made: Inputs, teacher: str, dataset: str) -> list[float | None]:
    entries = made["label"].load("labels.json", read_json)
    paths = [entry["path"] for entry in entries if (entry["teacher"], entry["set"]) == (teacher, dataset)]
    files = [pq.read_table(made["label"].external_file(path).path) for path in paths]
    return [value for table in files for value in table.column("applicability").to_pylist()]


def test_applicability_is_low_for_images_of_another_kind(made: Inputs) -> None:
    known, foreign = applicability(made, "masks", "pool"), applicability(made, "masks", "slides")
    assert (len(known), len(foreign)) == (30, 12)
    assert max(each for each in foreign if each is not None) < 0.05
    assert np.mean([each for each in known if each is not None]) == pytest.approx(0.5, abs=0.2)


def test_applicability_shares_are_counted_by_teacher_and_set(made: Inputs) -> None:
    shares = made["label"].counts["inapplicable"]
    assert shares["masks"]["slides"] == 1
    assert shares["masks"]["pool"] < 0.4
    assert set(shares) == {"masks", "elsewhere", "scenes"}
    assert set(shares["scenes"]) == {"pool"}


@pytest.mark.parametrize(
    ("teacher", "about"),
    [
        ("masks", {"dataset": "world", "training": 40, "held_out": 20}),
        ("elsewhere", {"dataset": "world", "training": 40, "held_out": 20}),
        ("small", {"why": "the set 'few' has 2 held-out images, and it takes 10"}),
        ("gabor", None),
    ],
)
def test_applicability_is_fitted_on_the_set_that_shows_what_a_teacher_knows(
    made: Inputs, teacher: str, about: dict[str, Any] | None
) -> None:
    artifact = made[f"teacher.{teacher}"]
    assert artifact.counts.get("applicability") == about
    assert artifact.has(APPLICABILITY_FILE) == bool(about and "dataset" in about)


def test_applicability_of_a_teacher_without_one_is_null(made: Inputs) -> None:
    assert set(applicability(made, "small", "pool")) == set(applicability(made, "gabor", "slides")) == {None}


def student(**fields: Any) -> StudentConfig:
    return StudentConfig(backbone="test_resnet", **fields)


def test_student_reads_no_labels_below_the_applicability(made: Inputs) -> None:
    for least, images in ((0.0, 42), (0.05, 30)):
        config = student(applicability={"masks": least})
        heads = {name: head for name, head in heads_of(config, made).items() if name == "masks"}
        dataset = student_dataset(config, heads, made)
        known = applicability(made, "masks", "pool")
        low = sum(each is not None and each < least for each in known)
        assert len(dataset) == images - low
        assert all("masks" in dataset.values(index) for index in range(len(dataset)))
        report = count_kept(heads, made)["masks"]
        assert (report["images"], report["inapplicable"]) == (42, 42 - len(dataset))


def test_student_expects_labels_of_a_teachers_own_sets_alone(made: Inputs) -> None:
    config = student()
    heads = {"scenes": heads_of(config, made)["scenes"]}
    assert [(shard.images.name, len(shard.rows)) for shard in student_shards(config, heads, made)]
    assert len(student_dataset(config, heads, made)) == 30


def test_student_applicability_of_a_teacher_without_one_is_refused(made: Inputs, slides: Path) -> None:
    with pytest.raises(ConfigError, match="'small', whose labels have none: the set 'few' has 2 held-out images"):
        heads_of(student(applicability={"small": 0.05}), made)
    text = recipe(slides).replace("weighting: equal", "weighting: equal, applicability: {gabor: 0.05}")
    with pytest.raises(ConfigError, match=r"'gabor', but nothing says .*: .*teachers\.gabor\.domain"):
        build_steps(parse_recipe(text, "applicable"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("labels: [street]", r"teachers\.masks\.labels names 'street', not under pool; there are pool, slides"),
        ("labels: []", r"teachers\.masks\.labels"),
        ("domain: street", r"teachers\.masks\.domain names 'street', not under data"),
        ("require: some", r"teachers\.masks\.require"),
    ],
)
def test_teacher_keys_are_checked(slides: Path, keys: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe(recipe(slides).replace("lr: 0.003, require: none", f"lr: 0.003, {keys}"), "applicable")
