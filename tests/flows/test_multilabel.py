"""A run on labels of several classes per image: a teacher of CSV files, its labels, a student, and what reads them."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import must
from browser.answers import Answers
from browser.filters import ImageSelection
from browser.loading import Loading
from evaluation.schedules import SCHEDULES, FinetuneSchedule
from flows.plan.selection import Selection
from flows.plan.steps import build_steps
from ingest.dataset import IngestedSet
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.reader import parse_recipe
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs, read_json
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelShard
from student.dataset import heads_of, student_dataset
from tasks import label as label_of

COLORS = ("red", "green", "blue")
RECIPE = """
name: findings
runtime: {runner: inline, device: cpu, precision: "32", workers: 1}
data:
  chest: {kind: csv, path: FOLDER/chest, labels: [red, green, blue], hold_out: 0}
  pool: {kind: folder, path: FOLDER/pool}
teachers:
  colors: {kind: supervised, task: multilabel, data: chest, backbone: test_resnet, image_size: 32, width: 16,
    steps: 60, batch: 8, lr: 0.005, label_smoothing: 0.02, require: {map: 0.6}, validate: {every: 30}}
pool: [pool, chest]
student: {backbone: test_resnet, image_size: 32, width: 16, steps: 60, batch: 8, lr: 0.005,
  thresholds: {multilabel: 0.6}}
evaluate: {starts: [student], finetune: [chest], schedule: SCHEDULE, probes: PROBES}
"""


def write_image(path: Path, present: np.ndarray, seed: int) -> None:
    """Write an image with a bright channel for each color that is present."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 60, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise + np.uint8(150) * present.astype(np.uint8)).save(path)


def write_sets(root: Path) -> None:
    """Write a labelled set in which every fourth cell is blank, and a pool without labels."""
    rng, seeds = np.random.default_rng(0), itertools.count()
    for split, count in {"train": 24, "valid": 12, "test": 12}.items():
        lines = ["image," + ",".join(COLORS)]
        for number in range(count):
            present = rng.random(3) < 0.5
            blank = (rng.random(3) < 0.25) & (split == "train")
            write_image(root / f"chest/{split}/{number}.png", present, next(seeds))
            cells = ["" if unknown else str(int(state)) for state, unknown in zip(present, blank, strict=True)]
            lines.append(f"{split}/{number}.png,{','.join(cells)}")
        (root / f"chest/{split}.csv").write_text("\n".join(lines), "utf-8")
    for number in range(8):
        write_image(root / f"pool/{number}.png", rng.random(3) < 0.5, next(seeds))


def recipe_text(folder: Path, probes: str = "[]", schedule: str = "quick") -> str:
    return RECIPE.replace("FOLDER", str(folder)).replace("PROBES", probes).replace("SCHEDULE", schedule)


def two_steps(images: int, total: int) -> list[dict[str, Any]]:
    return [{"batch": 4, "steps": 2}]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder)
    return folder


@pytest.fixture(scope="module")
def outcome(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = sets / "findings.yaml"
    path.write_text(recipe_text(sets, "[linear_multilabel]", "tiny"), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCHEDULES, "tiny", FinetuneSchedule(1, "two steps", two_steps, AugmentConfig()))
        return must.run(path, tmp_path_factory.mktemp("run") / "root")


def test_run_trains_and_measures_a_multilabel_teacher_and_student(outcome: Any) -> None:
    scores = outcome.artifacts["teacher.colors"].counts["scores"]
    assert scores.keys() == {"map", "auroc"}
    assert scores["map"] > 0.8
    metrics = json.loads((outcome.folder / "metrics.json").read())
    found = {(each["model"], each["metric"]): each["value"] for each in metrics}
    assert found["student", "map"] > found["baseline", "map"]
    assert found["baseline", "auroc"] == 0.5
    assert "multilabel" in (outcome.folder / "report.html").read().decode()


def test_count_kept_counts_multilabel_classes(outcome: Any) -> None:
    kept = outcome.artifacts["student"].load("kept.json", read_json)["colors"]
    assert (kept["task"], kept["threshold"], kept["classes"]) == ("multilabel", 0.6, list(COLORS))
    assert all(0 <= fewer <= held for fewer, held in zip(kept["kept"], kept["held"], strict=True))
    assert outcome.artifacts["student"].counts["images"] == 24 + 8


def test_student_dataset_of_multilabel_labels_has_true_ones_and_sure_pseudo_labels(outcome: Any) -> None:
    inputs = Inputs(dict(outcome.artifacts), Runtime(Root.of(str(outcome.folder.parent.parent)), "cpu", "32", 1))
    config = StudentConfig(thresholds={"multilabel": 0.8})
    dataset = student_dataset(config, heads_of(config, inputs), inputs)
    pseudo = set(IngestedSet(inputs["data.pool"]).images("train").shards[0].keys)
    probs = {key: dataset.values(index)["colors"]["probs"] for index, key in enumerate(dataset.keys())}
    true_entries = np.stack([each for key, each in probs.items() if key not in pseudo])
    assert set(np.unique(true_entries[~np.isnan(true_entries)])) == {0, 1}
    assert np.isnan(true_entries).any(), "an unknown class of a true label stays unknown"
    sure = np.stack([probs[key] for key in pseudo])
    known = sure[~np.isnan(sure)]
    assert (np.maximum(known, 1 - known) > 0.799).all()
    assert known.size


def test_check_required_stops_a_multilabel_teacher_that_is_worse_than_required(sets: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(recipe_text(sets), "utf-8")
    more = ["teachers.colors.require={map: 1.0}", "teachers.colors.steps=1", "teachers.colors.validate=null"]
    with pytest.raises(DataError, match=r"Teacher 'colors' may not label: map is 0\.\d+ on its held-out images"):
        must.run(path, tmp_path / "root", more, Selection("label"))


def test_check_labels_refuses_a_class_of_which_no_training_label_says_anything(sets: Path, tmp_path: Path) -> None:
    rows = [line.split(",") for line in (sets / "chest/train.csv").read_text("utf-8").splitlines()]
    lines = [",".join([*row[:2], row[2] if row[0] == "image" else "", *row[3:]]) for row in rows]
    copied = tmp_path / "sets"
    shutil.copytree(sets, copied)
    (copied / "chest/train.csv").write_text("\n".join(lines), "utf-8")
    (tmp_path / "r.yaml").write_text(recipe_text(copied), "utf-8")
    with pytest.raises(
        ConfigError, match=r"teachers\.colors: no training image of the set 'chest' says .* shows green"
    ):
        must.run(tmp_path / "r.yaml", tmp_path / "root")


def test_ingest_keeps_unknown_multilabel_cells(outcome: Any) -> None:
    ingested = IngestedSet(outcome.artifacts["data.chest"])
    space = ingested.spaces["multilabel"]
    assert space.classes == COLORS
    (shard,) = ingested.images("train").shards
    labels = LabelShard(ingested.true_labels("multilabel", "train", shard.name), label_of(space))
    probs = np.stack([value["probs"] for index in range(len(labels.keys)) if (value := labels.value(index))])
    assert set(np.unique(probs[~np.isnan(probs)])) == {0, 1}
    assert 0.1 < np.isnan(probs).mean() < 0.4


def test_fine_tuning_and_probing_measure_a_multilabel_set(outcome: Any) -> None:
    records = json.loads((outcome.folder / "measured.json").read())
    measured = {(each["protocol"].split()[0], each["metric"]) for each in records}
    assert measured == {(way, metric) for way in ("finetune", "linear_multilabel") for metric in ("map", "auroc")}
    assert {each["task"] for each in records} == {"multilabel"}


def test_browser_filters_multilabel_images_by_class(outcome: Any, sets: Path) -> None:
    loading = Loading(Root.of(str(outcome.folder.parent.parent)))
    loading.refresh()
    assert not loading.progress.damaged
    answers, store = Answers(loading), "true-chest-multilabel"
    test = answers.images(ImageSelection([f"{store}.class=red", "split=test"]), 100, 0)["total"]
    assert test == sum(line.split(",")[1] == "1" for line in lines_of_test_images(sets))
    info = next(each for each in answers.about()["stores"] if each["name"] == store)
    assert (info["scored"], info["holds"]) == (True, True)
    assert {"count", "unknown", "confidence"} <= set(info["columns"])
    colors = loading.newest_stores()["colors"].name
    low, high = (
        answers.images(ImageSelection([f"{colors}.class=red"], thresholds={colors: threshold}), 100, 0)["total"]
        for threshold in (0.0, 0.999)
    )
    assert high < low
    found = answers.histogram(ImageSelection(["split=test"]), f"{store}.class")
    assert dict(zip(found["values"], found["counts"], strict=True))["red"] == test
    image = answers.image(answers.images(ImageSelection(), 1, 0)["images"][0]["key"], {})
    assert all(label["says"] for label in image["labels"])


def lines_of_test_images(sets: Path) -> list[str]:
    return (sets / "chest/test.csv").read_text("utf-8").splitlines()[1:]


@pytest.mark.parametrize(
    ("task", "data", "says"),
    [
        ("classification", "chest", "the set 'chest' has no labels for 'classification'; it has labels for multilabel"),
        ("multilabel", "kinds", "the set 'kinds' has no labels for 'multilabel'; it has labels for classification"),
    ],
)
def test_plan_refuses_a_multilabel_set_for_a_single_label_teacher_and_the_reverse(
    task: str, data: str, says: str, sets: Path, tmp_path: Path
) -> None:
    write_image(tmp_path / "kinds/a/1.png", np.ones(3), 0)
    write_image(tmp_path / "kinds/b/1.png", np.ones(3), 1)
    more = [f"data.kinds={{kind: imagefolder, path: {tmp_path}/kinds}}", "student.thresholds={}"]
    with pytest.raises(ConfigError, match=f"^teachers.colors: {says}"):
        build_steps(
            parse_recipe(
                recipe_text(sets), "r", [*more, f"teachers.colors.task={task}", f"teachers.colors.data={data}"]
            )
        )


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_plan_refuses_single_label_probes_on_a_multilabel_set(probe: str, sets: Path) -> None:
    with pytest.raises(ConfigError, match=rf"evaluate.probes is \['{probe}'\], but no set has labels .* multilabel"):
        build_steps(parse_recipe(recipe_text(sets, f"[{probe}]"), "r"))


def test_plan_refuses_stages_that_learn_from_classes_on_a_multilabel_set(sets: Path) -> None:
    stage = "stages=[{name: s, method: supcon, data: [chest], batch: 4, steps: 1}]"
    with pytest.raises(ConfigError, match=r"the sets chest \(multilabel\) have 0 kinds of class labels"):
        build_steps(parse_recipe(recipe_text(sets), "r", [stage]))
