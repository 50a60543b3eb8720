"""Runs of the recipes in docs/how-to/arrays.md, tiny: elevation under aerial images, and the sound of a frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import yaml
from PIL import Image

import must
from browser.answers import Answers
from browser.filters import ImageSelection
from browser.loading import Loading
from cli.main import main
from evaluation.schedules import SCHEDULES, FinetuneSchedule
from pipeline.recipe.augment import AugmentConfig
from pipeline.storage.root import Root, local_file
from pipeline.stores.labels import LabelShard, LabelSpace
from tasks import label as label_of
from tests.docs.pages import blocks

PAGE, SIDE, IMAGES = "docs/how-to/arrays.md", 32, 20
RECIPES = {block.title: block.text for block in blocks(PAGE) if block.title}
TINY = {"backbone": "test_resnet", "image_size": SIDE, "width": 16, "steps": 60, "batch": 8, "lr": 0.005}
RUNTIME = {"runner": "inline", "device": "cpu", "precision": "32", "workers": 1}


def tiny_recipe(title: str, folder: Path) -> Path:
    """Write a recipe of the page with small networks and few steps, and the folders that it names beside it."""
    recipe = yaml.safe_load(RECIPES[title])
    for network in (*recipe["teachers"].values(), recipe["student"]):
        network.pop("epochs", None)
        network.pop("weights", None)
        network.update(TINY)
    if "evaluate" in recipe:
        recipe["evaluate"] |= {"starts": ["student"], "schedule": "tiny", "seeds": 1, "labels": ["all"]}
    path = folder / title
    path.write_text(yaml.safe_dump({**recipe, "runtime": RUNTIME}), "utf-8")
    return path


def run(recipe: Path, root: Path) -> Any:
    def two_steps(images: int, total: int) -> list[dict[str, Any]]:
        return [{"batch": 4, "steps": 2}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCHEDULES, "tiny", FinetuneSchedule(1, "two steps", two_steps, AugmentConfig()))
        return must.run(recipe, root)


def write_image(file: Path, gray: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gray.astype(np.uint8)).convert("RGB").save(file)


def write_terrain(folder: Path) -> None:
    """Write tiles whose brightness is their elevation, 100 m to 355 m, with a corner that was not measured."""
    for number in range(IMAGES + 4):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 255, (3, 3), np.uint8))
        gray = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        if number >= IMAGES:
            write_image(folder / f"tiles/{number}.png", gray)
            continue
        write_image(folder / f"aerial/images/{number}.png", gray)
        height = gray.astype(np.float32) + 100
        height[:4, :4] = -9999
        (folder / "aerial/elevation").mkdir(exist_ok=True)
        Image.fromarray(height).save(folder / f"aerial/elevation/{number}.tif")


def write_clips(folder: Path) -> None:
    """Write frames whose color is the pitch of their sound, and the sound's spectrogram in decibels."""
    for name in ("images", "sound"):
        (folder / "clips" / name).mkdir(parents=True)
    seconds = np.arange(8000) / 8000
    for number in range(IMAGES):
        share = np.random.default_rng(number).random()
        color = (int(255 * share), 60, int(255 * (1 - share)))
        Image.new("RGB", (SIDE, SIDE), color).save(folder / f"clips/images/{number}.png")
        sound = sum(np.sin(2 * np.pi * (50 * step + 2500 * share) * seconds) for step in range(25))
        waves = scipy.signal.stft(sound, 8000, nperseg=128)[2]
        np.save(folder / f"clips/sound/{number}.npy", 20 * np.log10(np.abs(waves) + 1e-2))


@pytest.fixture(scope="module")
def terrain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("terrain")
    write_terrain(folder)
    return run(tiny_recipe("elevation.yaml", folder), folder / "root")


def root_of(outcome: Any) -> Path:
    return Path(str(outcome.folder.parent.parent))


def test_run_learns_elevation(terrain: Any) -> None:
    counts = terrain.artifacts["teacher.elevation"].counts
    assert counts["metric"] == "r2"
    assert counts["scores"]["r2"] > 0.3 > counts["baseline"]["r2"]
    assert counts["scores"]["mae"] < counts["baseline"]["mae"]
    metrics = json.loads((terrain.folder / "metrics.json").read())
    found = {(each["model"], each["metric"]) for each in metrics}
    assert {("student", "r2"), ("student", "rmse"), ("baseline", "mae")} <= found
    measured = json.loads((terrain.folder / "measured.json").read())
    assert {each["protocol"].split()[0] for each in measured} >= {"linear_dense", "finetune"}
    assert "regression" in (terrain.folder / "report.html").read().decode()


def test_run_labels_in_the_unit_and_remembers_what_was_learned(terrain: Any) -> None:
    file = next(root_of(terrain).glob("labels/elevation-*/*.parquet"))
    space = LabelSpace("regression", ("elevation",), unit="m")
    shard = LabelShard(local_file(file), label_of(space))
    assert 150 < shard.metadata["space"]["mean"][0] < 300
    value = shard.value(0)
    assert value is not None
    assert value["values"].shape == (SIDE // 4, SIDE // 4, 1)
    assert 50 < value["values"].mean() < 400


def test_browser_draws_arrays_and_says_their_range(terrain: Any) -> None:
    loading = Loading(Root.of(str(root_of(terrain))))
    loading.refresh()
    assert not loading.progress.damaged
    answers = Answers(loading)
    found = answers.images(ImageSelection(["true-aerial-regression.unknown>0"]), 100, 0)
    assert found["total"] == IMAGES
    labels = answers.image(found["images"][0]["key"], {})["labels"]
    assert all(label["says"].startswith("elevation ") and label["says"].endswith(" m") for label in labels)


def succeed(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(arguments)


def test_predict_and_export_write_arrays(terrain: Any, tmp_path: Path) -> None:
    root, tiles = str(root_of(terrain)), str(root_of(terrain).parent / "tiles")
    for form in ("json", "parquet", "pictures"):
        succeed(["predict", tiles, str(tmp_path / form), "--to", form, "--root", root, "--device", "cpu"])
    line = json.loads((tmp_path / "json/predictions.jsonl").read_text("utf-8").splitlines()[0])
    assert 50 < line["labels"]["elevation"]["mean"]["elevation"] < 400
    export = ["export", "labels", str(root_of(terrain).parent / "elevation.yaml")]
    of_run = ["--root", root, "-o", "evaluate.schedule=quick"]  # the schedule of these tests is no file's
    succeed([*export, str(tmp_path / "hf"), "--to", "hf", *of_run])
    with pytest.raises(SystemExit, match="2"):
        main([*export, str(tmp_path / "masks"), "--to", "masks", *of_run])


def test_run_learns_the_sound_of_a_frame(tmp_path: Path) -> None:
    write_clips(tmp_path)
    outcome = run(tiny_recipe("sound.yaml", tmp_path), tmp_path / "root")
    counts = outcome.artifacts["teacher.sound"].counts
    assert counts["scores"]["r2"] > counts["baseline"]["r2"] + 0.1, "more than the mean spectrogram"
    file = next((tmp_path / "root").glob("labels/sound-*/*.parquet"))
    value = LabelShard(
        local_file(file), label_of(LabelSpace("regression", ("loudness",), aligned=False, unit="dB"))
    ).value(0)
    assert value is not None
    assert value["values"].shape == (SIDE // 4, SIDE // 4, 1)
