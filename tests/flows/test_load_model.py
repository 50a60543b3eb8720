"""Models by name: of a recipe, or the newest of a root; what they predict is what labelling stored."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import must
from ingest.dataset import IngestedSet
from pipeline.errors import ConfigError, DataError
from pipeline.steps.artifact import read_json
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelShard
from tasks.teacher import Teacher
from tests.disk import folder_of, stored
from tests.flows.tiny import TRAIN_STEPS

EXACT: dict[str, Any] = {"device": "cpu", "precision": "32", "workers": 1}


def newest(root: Path, step: str) -> Path:
    made = Workspace(Root.of(root)).newest(step)
    assert made is not None
    return folder_of(made)


def test_load_model_of_a_teacher_predicts_the_stored_labels(finished_root: Path, recipe: Path) -> None:
    model = must.load("masks", recipe, finished_root, **EXACT)
    teacher = Workspace(Root.of(finished_root)).newest("teacher.masks")
    data = Workspace(Root.of(finished_root)).newest("data.pool")
    assert teacher is not None
    assert data is not None
    shard = IngestedSet(data).images("train").shards[0]
    file = next(finished_root.glob(f"labels/masks-*/{shard.sha256[:16]}.parquet"))
    labels = LabelShard(stored(file), Teacher.load(teacher).label)
    for row in range(len(shard)):
        image = folder_of(data) / "image.png"
        image.write_bytes(shard.read(row))
        found, kept = model.predict(image)["masks"].value, labels.value(row, 0.5)
        image.unlink()
        assert kept is not None
        for name, array in kept.items():
            np.testing.assert_array_equal(found[name], array)


def test_load_model_takes_the_newest_of_a_root(finished_root: Path, recipe: Path) -> None:
    student = must.load(root=finished_root, **EXACT)
    assert set(student.heads) == {"masks", "gabor"}
    assert student.heads["masks"].task == "segmentation"
    image = np.zeros((40, 30, 3), np.uint8)
    expected = must.load("student", recipe, finished_root, **EXACT).embed(image)
    np.testing.assert_allclose(student.embed(image), expected, rtol=1e-3, atol=1e-4)
    folder = newest(finished_root, "student")
    of_file = must.load(str(folder / "model.safetensors"), **EXACT)
    # the memory layout is measured anew for a file, and rounds otherwise
    np.testing.assert_allclose(of_file.embed(image), expected, rtol=1e-3, atol=1e-4)
    assert of_file.heads == student.heads
    assert student.predictor.preprocessing.size == read_json(folder / "model.json")["image_size"]


def test_load_model_of_a_teacher_without_vectors_says_so(finished_root: Path) -> None:
    gabor = must.load("gabor", root=finished_root, **EXACT)
    assert gabor.predict(np.zeros((40, 30, 3), np.uint8))["gabor"].draw().size == (30, 40)
    with pytest.raises(ConfigError, match="model 'gabor' tells no vectors"):
        gabor.embed(np.zeros((40, 30, 3), np.uint8))


def test_load_model_says_what_there_is_and_what_to_run(finished_root: Path, recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model 'mask' is unknown\. Did you mean 'masks'\? Known: gabor, masks, stu"):
        must.load("mask", root=finished_root)
    with pytest.raises(ConfigError, match=r"Did you mean 'masks'"):
        must.load("mask", recipe, finished_root)
    with pytest.raises(DataError, match=r"holds no trained model; `must run` makes one"):
        must.load("student", root=tmp_path / "empty")
    with pytest.raises(DataError, match=r"Step 'student' has made nothing for this recipe .* `must run RECIPE"):
        must.load("student", recipe, finished_root, [f"student.steps={TRAIN_STEPS + 1}"])
    with pytest.raises(ConfigError, match=r"'nothing.safetensors': no such file"):
        must.load("nothing.safetensors", root=finished_root)
    with pytest.raises(ConfigError, match=r"runtime.device is 'tpu'"):
        must.load("student", root=finished_root, device="tpu")
    assert not (tmp_path / "empty").exists()


def test_load_model_names_what_is_gone(finished_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(finished_root / "artifacts" / "student", root / "artifacts" / "student")
    (newest(root, "student") / "model.safetensors").unlink()
    with pytest.raises(DataError, match="some of its files are gone; `must run` with its recipe makes it again"):
        must.load("student", root=root)
