"""Teachers of kind `backbone` whose model is one of Hugging Face transformers, from the recipe to labels and stages."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import must
from flows.plan.selection import Selection
from flows.plan.steps import build_steps
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import Artifact, read_json
from pipeline.stores.labels import LabelShard
from tasks.frozen_teacher import FrozenTeacher
from tasks.teacher import Teacher, open_teacher
from teachers.models.transformers_backbones import fetch
from tests.disk import folder_of
from tests.teachers.random_weights import save_random_backbone
from tests.teachers.small_backbones import SIDE, WIDTH, save_backbone

RECIPE = """
name: features
runtime: {{runner: inline, device: cpu, precision: "32", workers: 1}}
data:
  pool: {{kind: scenes, count: 16, seed: 2, size: 48}}
teachers:
  one: {{kind: backbone, weights: {weights}, domain: pool, components: 6, {more}}}
pool: [pool]
student: {{backbone: test_resnet, image_size: 64, width: 16, steps: 2, batch: 8, weighting: equal}}
"""
MAPS = "task: feature_maps"


def run(weights: Path | str, folder: Path, more: str = MAPS, last: str = "teacher.one") -> Mapping[str, Artifact]:
    (folder / "recipe.yaml").write_text(RECIPE.format(weights=f"'{weights}'", more=more), "utf-8")
    return must.run(folder / "recipe.yaml", root=folder / "root", steps=Selection(last=last)).artifacts


def pool_images(artifacts: Mapping[str, Artifact], keys: list[str]) -> list[bytes]:
    """Return the files of the pool's images in the order of the keys."""
    with tarfile.open(folder_of(artifacts["data.pool"]) / "images/train/shard-000000.tar") as tar:
        members = {member.name.partition(".")[0]: member for member in tar.getmembers()}
        files = [tar.extractfile(members[key]) for key in keys]
        return [file.read() for file in files if file is not None]


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone("dinov2", tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("name", ["dinov2", "siglip", "clip", "convnext"])
def test_backbone_teacher_of_transformers_labels_what_the_library_says(name: str, tmp_path: Path) -> None:
    """Once it is made, the folder of the model is not needed again."""
    published = save_backbone(name, tmp_path)
    backbone, _ = fetch(str(published), "features", None)
    made = run(published, tmp_path, "")["teacher.one"]
    shutil.rmtree(published)
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network: Any = open_teacher(made).network
    with torch.inference_mode():
        outputs, vectors = network.forward_with_vector(images)
        expected = backbone(images)
    torch.testing.assert_close(vectors, expected)
    torch.testing.assert_close(outputs["one"], network.components(expected))
    assert Teacher.load(made).space.classes == tuple("123456")
    assert str(tmp_path) not in (folder_of(made) / "model.json").read_text("utf-8")
    assert sorted(path.name for path in folder_of(made).glob("model*")) == ["model.json", "model.safetensors"]


def test_backbone_teacher_of_transformers_stores_maps_that_it_says_again(dinov2: Path, tmp_path: Path) -> None:
    artifacts = run(dinov2, tmp_path, last="label")
    made = artifacts["teacher.one"]
    label = Teacher.load(made).label
    [entry] = artifacts["label"].load("labels.json", read_json)
    shard = LabelShard(artifacts["label"].external_file(entry["path"]), label)
    stored = {row["key"]: label.decode(row)["map"] for row in shard.rows()}
    predictor = open_teacher(made)
    images = [Image.open(io.BytesIO(encoded)).convert("RGB") for encoded in pool_images(artifacts, list(stored))]
    inputs = torch.stack([torch.tensor(predictor.preprocessing(each, each.size)) for each in images])
    said = predictor.predict(inputs.permute(0, 3, 1, 2), [(48, 48)] * 16)["one"]["map"]
    assert said.shape == (16, 4, 4, 6)
    np.testing.assert_allclose(np.stack(list(stored.values())), said, atol=0.05)
    assert np.abs(said).mean() > 0.5


@pytest.mark.parametrize("task", ["features", "feature_maps"])
def test_frozen_teacher_reads_a_backbone_of_transformers(task: str, dinov2: Path, tmp_path: Path) -> None:
    made = run(dinov2, tmp_path, f"task: {task}")["teacher.one"]
    teacher = FrozenTeacher(open_teacher(made), with_map=True)
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    vector, cells = teacher(images)
    assert (vector.shape, teacher.width) == ((2, WIDTH), WIDTH)
    assert cells.shape == (2, WIDTH, 4, 4)
    assert teacher.output(images).shape == ((2, 6) if task == "features" else (2, 6, 4, 4))


def test_student_learns_from_a_live_backbone_of_transformers(dinov2: Path, tmp_path: Path) -> None:
    artifacts = run(dinov2, tmp_path, f"{MAPS}, labels: live", last="student")
    assert artifacts["label"].counts["shards"] == 0
    assert artifacts["student"].counts["images"] == 16


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        (
            "weights: timm",
            r"teachers\.one: weights 'timm' are of a timm model, and none is named: add model, as in \{model: vit",
        ),
        ("weights: 'package:a/b.pth'", r"weights 'package:a/b\.pth' are of a timm model, and none is named"),
        (
            "model: test_vit, weights: 'hub:facebook/dinov2-small'",
            r"teachers\.one: weights 'hub:facebook/dinov2-small' are of Hugging Face transformers, and model 'test_v"
            "it' is one of timm: leave out model, or give a file",
        ),
    ],
)
def test_backbone_config_says_which_library_a_teacher_is_of(teacher: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_recipe(RECIPE.format(weights="w", more="").replace("weights: w", teacher), "features")


def test_backbone_config_needs_transformers_only_for_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teachers._hugging_face.importlib.util.find_spec", lambda name: None)
    parse_recipe(RECIPE.format(weights="timm", more="model: test_vit"), "features")
    with pytest.raises(ConfigError, match=r"no timm model is named, and for one of Hugging Face transformers the pack"):
        parse_recipe(RECIPE.format(weights="'hub:facebook/dinov2-small'", more=""), "features")


def test_plan_takes_a_backbone_of_the_hub() -> None:
    recipe = parse_recipe(RECIPE.format(weights="'hub:facebook/dinov2-small'", more=""), "features")
    [step] = [step for step in build_steps(recipe) if step.name == "teacher.one"]
    assert (step.config["weights"], step.config["teacher"]["model"]) == ("hub:facebook/dinov2-small", None)


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("bert", "", r"teachers\.one: weights '.*bert' are of a model of type 'bert', which has no part that takes"),
        ("nowhere", "", r"teachers\.one\.weights: weights '.*nowhere': no such file or folder"),
        ("dinov2", "image_size: 70", r"teachers\.one: image_size 70 is no multiple of the 16 pixels .*64 or 80 would"),
        ("dinov2", "model: test_vit", r"teachers\.one: weights '.*dinov2' are of Hugging .*: leave out model, or give"),
        ("file", "", r"teachers\.one: weights '.*file.*safetensors' are no folder that save_pretrained wrote, and no"),
        ("dinov2", "components: 17", r"teachers\.one: components: 17 is more than the 16 numbers of the model's vecto"),
    ],
)
def test_backbone_teacher_of_transformers_refuses(name: str, more: str, says: str, tmp_path: Path) -> None:
    weights = tmp_path / name
    if name == "file":
        weights.mkdir()
        weights = save_random_backbone("test_vit", weights)
    elif name != "nowhere":
        save_backbone(name, tmp_path)
    recipe = RECIPE.replace(", components: 6", "")
    (tmp_path / "recipe.yaml").write_text(recipe.format(weights=f"'{weights}'", more=more), "utf-8")
    with pytest.raises(ConfigError, match=says):
        must.run(tmp_path / "recipe.yaml", root=tmp_path / "root", steps=Selection(last="teacher.one"))
