"""Teachers of kind `backbone`, from the recipe to the student: features are labelled, learned, and refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
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

SIDE, WIDTH = 32, 96
RECIPE = """
name: features
runtime: {{runner: inline, device: cpu, precision: "32", workers: 1}}
data:
  pool: {{kind: scenes, count: 36, seed: 2, size: 48}}
  few: {{kind: scenes, count: 8, seed: 2, size: 48}}
teachers:
  resnet: {{kind: backbone, model: test_resnet, weights: {weights}, domain: pool, image_size: 32, components: 12}}
  all: {{kind: backbone, model: test_resnet, weights: {weights}, domain: pool, image_size: 32}}
pool: [pool]
student: {{backbone: test_resnet, image_size: 32, steps: 80, batch: 12, lr: 0.003, weighting: equal}}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_backbone("test_resnet", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def artifacts(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Artifact]:
    """What a run up to the student makes."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "recipe.yaml").write_text(RECIPE.format(weights=weights), "utf-8")
    return must.run(folder / "recipe.yaml", root=folder / "root", steps=Selection(last="student")).artifacts


def test_backbone_teacher_fits_components_to_the_domain(artifacts: Mapping[str, Artifact]) -> None:
    counts = {name: artifacts[f"teacher.{name}"].manifest["counts"] for name in ("resnet", "all")}
    assert (counts["resnet"]["components"], counts["resnet"]["images"]) == (12, 36)
    assert counts["all"]["components"] == 35  # of 36 images: no more are told apart
    assert 0.8 < counts["resnet"]["variance"] < counts["all"]["variance"] == 1


def test_backbone_teacher_labels_what_the_model_and_its_components_say(
    artifacts: Mapping[str, Artifact], weights: Path
) -> None:
    made = artifacts["teacher.resnet"]
    network: Any = open_teacher(made).network
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs, vectors = network.forward_with_vector(images)
        model: Any = timm.create_model("test_resnet", num_classes=0, checkpoint_path=str(weights)).eval()
        mean, std = (torch.tensor(network_part).view(3, 1, 1) for network_part in statistics(made))
        expected = model((images.float() / 255 - mean) / std)
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["resnet"], network.components(vectors))
    assert Teacher.load(made).space.classes == tuple(str(number) for number in range(1, 13))


def statistics(made: Artifact) -> tuple[list[float], list[float]]:
    about = made.load("model.json", read_json)
    return about["mean"], about["std"]


def label_vectors(artifacts: Mapping[str, Artifact], teacher: str) -> np.ndarray[Any, Any]:
    labels, label = artifacts["label"], Teacher.load(artifacts[f"teacher.{teacher}"]).label
    entries = [entry for entry in labels.load("labels.json", read_json) if entry["teacher"] == teacher]
    shards = [LabelShard(labels.external_file(entry["path"]), label) for entry in entries]
    return np.stack([label.decode(row)["vector"] for shard in shards for row in shard.rows()])


def test_labels_of_a_backbone_teacher_have_the_mean_variance_1(artifacts: Mapping[str, Artifact]) -> None:
    vectors = label_vectors(artifacts, "all")
    assert vectors.shape == (36, 35)
    np.testing.assert_allclose(vectors.mean(axis=0), np.zeros(35), atol=0.02)
    assert vectors.var(axis=0).sum() / WIDTH == pytest.approx(1, rel=0.01)  # the other components have none
    np.testing.assert_allclose(label_vectors(artifacts, "resnet"), vectors[:, :12], atol=0.02)


def test_student_learns_features_of_a_backbone_teacher(artifacts: Mapping[str, Artifact]) -> None:
    lines = artifacts["student"].load("log/train.jsonl", lambda file: file.read_text("utf-8").splitlines())
    losses = [json.loads(line)["losses"]["resnet"] for line in lines]
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


@pytest.fixture(scope="module")
def live(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Artifact]:
    """What a run makes in which one of the two teachers is asked while the student is trained."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "recipe.yaml").write_text(RECIPE.format(weights=weights), "utf-8")
    steps = Selection(last="student")
    return must.run(
        folder / "recipe.yaml", root=folder / "root", overrides=["teachers.resnet.labels=live"], steps=steps
    ).artifacts


def test_live_teacher_labels_no_image(artifacts: Mapping[str, Artifact], live: Mapping[str, Artifact]) -> None:
    entries = live["label"].load("labels.json", read_json)
    assert {entry["teacher"] for entry in entries} == {"all"}
    assert live["teacher.resnet"].fingerprint == artifacts["teacher.resnet"].fingerprint, "it is the same teacher"


def test_student_learns_from_a_live_teacher(artifacts: Mapping[str, Artifact], live: Mapping[str, Artifact]) -> None:
    """From other targets than those stored: what it says of crops."""
    losses: dict[str, list[float]] = {}
    for name, made in {"stored": artifacts["student"], "live": live["student"]}.items():
        lines = made.load("log/train.jsonl", lambda file: file.read_text("utf-8").splitlines())
        losses[name] = [json.loads(line)["losses"]["resnet"] for line in lines]
    assert np.mean(losses["live"][-10:]) < 0.75 * np.mean(losses["live"][:10])
    assert losses["live"] != losses["stored"]


def test_student_learns_from_live_teachers_alone(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(weights=weights), "utf-8")
    overrides = [f"teachers.{name}.labels=live" for name in ("resnet", "all")]
    made = must.run(
        tmp_path / "recipe.yaml", root=tmp_path, overrides=[*overrides, "student.steps=2"], steps=Selection("student")
    ).artifacts
    assert made["label"].counts["shards"] == 0
    assert made["student"].counts["images"] == 36, "all of the pool"


def test_supervised_objective_adds_what_live_teachers_say_to_stored_labels(live: Mapping[str, Artifact]) -> None:
    """A batch of two passes has the gradient of one; a head's labels count by the images that have one."""
    network = Network.load(folder_of(live["student"])).eval()
    teacher, combine = FrozenTeacher(open_teacher(live["teacher.resnet"])), WeightedSum({"resnet": 1.0, "all": 1.0})
    objective = SupervisedObjective(network, combine, torch.contiguous_format, {"resnet": teacher})
    objective.eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    truth = torch.randn(3, len(network.tasks["all"].space.classes), generator=generator)

    def part(rows: slice, labelled: list[int]) -> Batch:
        inside = [row for row in labelled if rows.start <= row < rows.stop]
        target = {"vector": truth[[labelled.index(row) for row in inside]]}
        entry = {"rows": torch.tensor(inside, dtype=torch.long) - rows.start, "target": target}
        return Batch(images[rows], list("abcd")[rows], {"all": entry} if inside else {})

    def gradient(parts: list[Batch]) -> torch.Tensor:
        amounts = [objective.amounts(each) for each in parts]
        total = {name: sum(each.get(name, 0) for each in amounts) for each in amounts for name in each}
        network.zero_grad()
        for batch, own in zip(parts, amounts, strict=True):
            objective(batch, {name: own.get(name, 0) / total[name] for name in total})[0].backward()
        found = next(network.backbone.parameters()).grad
        assert found is not None
        return found.clone()

    labelled = [0, 1, 3]
    whole = gradient([part(slice(0, 4), labelled)])
    torch.testing.assert_close(gradient([part(slice(0, 3), labelled), part(slice(3, 4), labelled)]), whole)


def test_supervised_objective_asks_live_teachers_about_augmented_images(live: Mapping[str, Artifact]) -> None:
    made, student = live["teacher.resnet"], live["student"]
    network = Network.load(folder_of(student))
    teacher = FrozenTeacher(open_teacher(made))
    objective = SupervisedObjective(
        network, WeightedSum({"resnet": 1.0}), torch.contiguous_format, {"resnet": teacher}
    ).eval()
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, list("abcd"), {})
    shares = dict.fromkeys(objective.amounts(batch), 1.0)
    with torch.no_grad():
        found, logged = objective(batch, shares)
        said = open_teacher(made).network(images)["resnet"]
        expected = network.tasks["resnet"].loss(network(images)["resnet"], {"vector": said})
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert logged.keys() == {"resnet"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["student.labels=true_only"], r"teachers\.resnet\.labels is 'live', but student\.labels is 'true_only'"),
        (["student.applicability={resnet: 0.1}"], r"so that student\.applicability\.resnet has no labels to leave out"),
        (
            ["teachers.gabor={kind: analytic, labels: live}"],
            r"teachers\.gabor\.labels is 'live', which is for the tasks 'feature_maps' and 'features', and",
        ),
    ],
)
def test_live_teacher_refuses(weights: Path, tmp_path: Path, overrides: list[str], says: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(weights=weights), "utf-8")
    with pytest.raises(ConfigError, match=says):
        must.run(tmp_path / "recipe.yaml", root=tmp_path, overrides=["teachers.resnet.labels=live", *overrides])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "teachers.resnet.domain=few",
            r"teachers\.resnet: domain: the set 'few' has 8 images to train on, and 12",
        ),
        ("teachers.resnet.components=200", r"teachers\.resnet: components: 200 is more than the \d+ numbers"),
        ("teachers.resnet.model=test_resnett", "test_resnett"),
        ("teachers.resnet.domain=pol", "pol"),
    ],
)
def test_backbone_teacher_refuses(weights: Path, tmp_path: Path, override: str, says: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(weights=weights), "utf-8")
    with pytest.raises(ConfigError, match=says):
        must.run(tmp_path / "recipe.yaml", root=tmp_path, overrides=[override], steps=Selection(last="teacher.resnet"))
