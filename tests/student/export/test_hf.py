"""The student as a folder that timm loads, and its model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import must
from cli.main import main
from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from student.export import export_student
from student.export._model_card import model_card, public_name
from student.export.hf import hub_config
from tests.disk import folder_of

Output = pytest.CaptureFixture[str]


@pytest.fixture
def student(finished_root: Path) -> Artifact:
    made = Workspace(Root.of(finished_root)).newest("student")
    assert made is not None
    return made


@torch.no_grad()
def test_hf_export_gives_the_same_vectors_in_timm(
    finished_root: Path, recipe: Path, noise: Callable[..., Any], tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "hf.model"
    with pytest.raises(SystemExit) as ended:
        main(["export", "student", str(recipe), str(out), "--to", "hf", "--root", str(finished_root)])
    assert not ended.value.code
    assert f'timm.create_model("local-dir:{out}", pretrained=True)' in capsys.readouterr().out
    model: Any = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    image = Image.fromarray(noise(3, 50, 70))
    here = must.load("student", recipe, finished_root, device="cpu", precision="32")
    prepared = torch.tensor(here.predictor.preprocessing(image, image.size)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    np.testing.assert_allclose(model((prepared - mean) / std)[0], here.embed(image), atol=1e-5)
    assert abs(transform(image) - (prepared[0] - mean) / std).max() < 0.05, "timm prepares images as training did"
    np.testing.assert_allclose(model(transform(image)[None])[0], here.embed(image), atol=0.05)


def test_hf_export_writes_a_model_card(student: Artifact, tmp_path: Path) -> None:
    export_student("hf", student, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: timm\n")
    for line in (
        "| world | scenes | 14 | test 2, train 12 | segmentation.test 2, segmentation.train 12 |",
        "Pool: 48 images of pool, world.",
        "The student learned from 48 images: true labels where there are any, else those of the teachers.",
        "| gabor | analytic | texture | gabor |  |  |  |",
        "Whole images are stretched to 32 x 32 pixels",
        "| masks | world, test | 2 | miou (higher is better) | 0.",
    ):
        assert line in card
    assert "| masks | supervised | segmentation | test_resnet |  | world | miou 0." in card
    assert str(student.root) not in card
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_model_card_of_a_student_alone_says_what_is_not_known(student: Artifact, tmp_path: Path) -> None:
    lone = Artifact(Root.of(tmp_path), "student", student.manifest)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.json").write_bytes((folder_of(student) / "model.json").read_bytes())
    card = model_card(lone, "", "")
    assert card.count("no longer tells") == 2
    assert "It was not measured." in card


def test_model_card_names_weights_of_others_without_folders(student: Artifact) -> None:
    config = {
        **student.manifest["config"],
        "student": {**student.manifest["config"]["student"], "weights": "/me/a.pth"},
    }
    card = model_card(Artifact(student.root, student.path, {**student.manifest, "config": config}), "", "")
    assert "Check the licences of\n\n* the student's own start: test_resnet (a.pth)\n" in card
    assert "/me" not in card
    assert [public_name(name) for name in ("timm", "hub:a/b", "package:p/c.pth")] == [
        "timm",
        "hub:a/b",
        "package:p/c.pth",
    ]


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "resnet18.a1_in1k"])
def test_hub_config_is_loaded_by_timm(backbone: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hub_config(backbone, 64, "pad")), "utf-8")
    model: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=False)
    assert (model.num_classes, model(torch.zeros(1, 3, 64, 64)).shape[1]) == (0, model.num_features)
    config = timm.data.resolve_model_data_config(model)
    assert (tuple(config["input_size"]), config["crop_pct"], config["crop_mode"]) == ((3, 64, 64), 1.0, "border")


def test_hf_export_refuses_heads_and_folders_with_files(student: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hf holds the backbone and no head"):
        export_student("hf", student, tmp_path / "out", ["masks"])
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    with pytest.raises(ConfigError, match="already exists and is not empty"):
        export_student("hf", student, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
