"""Teachers of kind `backbone` whose maps are learned, from the recipe to the student."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import must
from flows.plan.selection import Selection
from pipeline.data.loader import Batch
from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact, read_json
from pipeline.stores.labels import LabelShard
from tasks.frozen_teacher import FrozenTeacher
from tasks.network import Network
from tasks.teacher import Teacher, open_teacher
from tasks.training import SupervisedObjective, WeightedSum
from tests.disk import folder_of
from tests.teachers.random_weights import save_random_backbone

SIDE, GRID, WIDTH = 64, 4, 64
RECIPE = """
name: maps
runtime: {{runner: inline, device: cpu, precision: "32", workers: 1}}
data:
  pool: {{kind: scenes, count: 30, seed: 2, size: 48}}
  few: {{kind: scenes, count: 8, seed: 2, size: 48}}
teachers:
  vit: {{kind: backbone, task: feature_maps, model: test_vit, weights: {weights}, domain: pool, image_size: 64}}
  gabor: {{kind: analytic, image_size: 32, wavelengths: [4.0]}}
pool: [pool]
student: {{backbone: test_resnet, image_size: 64, width: 32, steps: 80, batch: 12, lr: 0.003, weighting: equal}}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_backbone("test_vit", tmp_path_factory.mktemp("weights"))


def run_to_student(folder: Path, weights: Path, overrides: list[str]) -> Mapping[str, Artifact]:
    (folder / "recipe.yaml").write_text(RECIPE.format(weights=weights), "utf-8")
    steps = Selection(last="student")
    return must.run(folder / "recipe.yaml", root=folder / "root", overrides=overrides, steps=steps).artifacts


@pytest.fixture(scope="module")
def artifacts(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Artifact]:
    """What a run up to the student makes."""
    return run_to_student(tmp_path_factory.mktemp("maps"), weights, [])


@pytest.fixture(scope="module")
def live(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Artifact]:
    """What a run makes in which the teacher is asked while the student is trained."""
    return run_to_student(tmp_path_factory.mktemp("live"), weights, ["teachers.vit.labels=live"])


def test_backbone_teacher_fits_components_to_cells_of_the_domain(artifacts: Mapping[str, Artifact]) -> None:
    counts = artifacts["teacher.vit"].manifest["counts"]
    assert (counts["components"], counts["images"]) == (64, 30), "64 unless the recipe says otherwise"
    assert Teacher.load(artifacts["teacher.vit"]).space.classes == tuple(str(number) for number in range(1, 65))


def label_maps(artifacts: Mapping[str, Artifact]) -> np.ndarray[Any, Any]:
    labels, label = artifacts["label"], Teacher.load(artifacts["teacher.vit"]).label
    entries = [entry for entry in labels.load("labels.json", read_json) if entry["teacher"] == "vit"]
    shards = [LabelShard(labels.external_file(entry["path"]), label) for entry in entries]
    return np.stack([label.decode(row)["map"] for shard in shards for row in shard.rows()])


def test_labels_of_backbone_maps_have_the_mean_variance_1(artifacts: Mapping[str, Artifact]) -> None:
    """All of 16 cells of each image were drawn: the components are of these very cells."""
    maps = label_maps(artifacts)
    assert maps.shape == (30, GRID, GRID, WIDTH)
    cells = maps.reshape(-1, WIDTH)
    np.testing.assert_allclose(cells.mean(axis=0), np.zeros(WIDTH), atol=0.02)
    assert cells.var(axis=0).mean() == pytest.approx(1, rel=0.01)
    assert (np.diff(cells.var(axis=0)) < 0.01).all(), "the largest first"


def losses_of(artifacts: Mapping[str, Artifact]) -> list[float]:
    lines = artifacts["student"].load("log/train.jsonl", lambda file: file.read_text("utf-8").splitlines())
    return [json.loads(line)["losses"]["vit"] for line in lines]


def test_student_learns_feature_maps_of_a_backbone_teacher(artifacts: Mapping[str, Artifact]) -> None:
    losses = losses_of(artifacts)
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:10])


def test_student_learns_feature_maps_of_a_live_teacher(
    artifacts: Mapping[str, Artifact], live: Mapping[str, Artifact]
) -> None:
    entries = live["label"].load("labels.json", read_json)
    assert {entry["teacher"] for entry in entries} == {"gabor"}
    assert live["teacher.vit"].fingerprint == artifacts["teacher.vit"].fingerprint, "it is the same teacher"
    losses = losses_of(live)
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:10])
    assert losses != losses_of(artifacts)


def test_supervised_objective_asks_for_maps_of_augmented_images(live: Mapping[str, Artifact]) -> None:
    made, network = live["teacher.vit"], Network.load(folder_of(live["student"]))
    teacher = FrozenTeacher(open_teacher(made))
    objective = SupervisedObjective(network, WeightedSum({"vit": 1.0}), torch.contiguous_format, {"vit": teacher})
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, list("abcd"), {})
    with torch.no_grad():
        found, _ = objective.eval()(batch, dict.fromkeys(objective.amounts(batch), 1.0))
        said = open_teacher(made).network(images)["vit"]
        expected = network.tasks["vit"].loss(network(images)["vit"], {"map": said})
    assert said.shape == (4, WIDTH, GRID, GRID)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("teachers.vit.domain=few", r"teachers\.vit: domain: the set 'few' has 8 images to train on, and principal"),
        ("teachers.vit.components=200", r"teachers\.vit: components: 200 is more than the 64 numbers of .* cells"),
        ("teachers.vit.model=pit_ti_224", r"'pit_ti_224' has no readout"),
        ("teachers.vit.task=normals", r"task.*'features' or 'feature_maps'"),
    ],
)
def test_backbone_teacher_of_maps_refuses(weights: Path, tmp_path: Path, override: str, says: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(weights=weights), "utf-8")
    with pytest.raises(ConfigError, match=says):
        must.run(tmp_path / "recipe.yaml", root=tmp_path, overrides=[override], steps=Selection(last="teacher.vit"))
