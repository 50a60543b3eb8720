"""A run on images of five channels, TIFF and NumPy's arrays: teacher, labels, student, and what reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import must
from browser.loading import Loading
from browser.pictures import Pictures
from cli.export import LabelExport, export_labels
from cli.main import main
from flows.plan.run_plan import find_inputs
from flows.plan.selection import Selection
from flows.plan.steps import build_steps
from pipeline.errors import ConfigError, DataError
from pipeline.models.checkpoint import read_tensors
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import read_json
from pipeline.storage.root import Root
from student.export import export_student
from student.export_samples import held_out_shards

SIDE, IMAGES = 32, 20
LOWEST, HIGHEST = (5000, 10, 300, 800, 20000), (6000, 90, 2000, 5000, 50000)
"""By channel."""
RECIPE = """
name: bands
runtime: {runner: inline, device: cpu, precision: "32", workers: 1}
data:
  fields: {kind: rasters, path: FOLDER/fields, channels: 5, arrays: index, array_channels: [ndvi]}
  tiles: {kind: folder, path: FOLDER/tiles, channels: 5}
teachers:
  index: {kind: supervised, task: regression, data: fields, backbone: test_resnet, image_size: 32, width: 16,
    steps: 60, batch: 8, lr: 0.005, require: {r2: 0.3}}
pool: [tiles, fields]
student: {backbone: test_resnet, image_size: 32, width: 16, steps: 30, batch: 8, lr: 0.005}
"""
PICTURES = "data.pictures={kind: scenes, count: 8, seed: 0, size: 32, tasks: [classification]}"


def bands(number: int) -> np.ndarray:
    """Return reflectances (H, W, 5) in 16 bits, of which the fourth is near infrared, each channel in its own range."""
    coarse = np.random.default_rng(number).integers(LOWEST, HIGHEST, (3, 3, 5))
    return coarse.repeat(11, axis=0).repeat(11, axis=1)[:SIDE, :SIDE].astype(np.uint16)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for name in ("fields/images", "fields/index", "tiles"):
        (folder / name).mkdir(parents=True)
    for number in range(IMAGES):
        image = bands(number)
        tifffile.imwrite(folder / f"fields/images/{number}.tif", image, photometric="minisblack", planarconfig="contig")
        red, infrared = image[..., 2].astype(np.float64), image[..., 3].astype(np.float64)
        np.save(folder / f"fields/index/{number}.npy", (infrared - red) / (infrared + red))
    for number in range(IMAGES, IMAGES + 6):
        np.save(folder / f"tiles/{number}.npy", bands(number).astype(np.float32))
    (folder / "bands.yaml").write_text(RECIPE.replace("FOLDER", str(folder)), "utf-8")
    return folder


@pytest.fixture(scope="module")
def outcome(sets: Path) -> Any:
    return must.run(sets / "bands.yaml", sets / "root")


def test_run_learns_from_images_of_five_channels(outcome: Any) -> None:
    assert outcome.artifacts["data.tiles"].counts["images"] == 6
    scores = outcome.artifacts["teacher.index"].counts["scores"]
    assert scores["r2"] > 0.3
    assert outcome.artifacts["student"].load("model.json", read_json)["channels"] == 5
    metrics = json.loads((outcome.folder / "metrics.json").read())
    assert {each["model"] for each in metrics} >= {"student", "teacher:index", "baseline"}


def test_teacher_normalizes_by_the_statistics_of_its_own_images(outcome: Any) -> None:
    tensors = outcome.artifacts["teacher.index"].load("model.safetensors", read_tensors)[1]
    mean, std = (tensors[f"backbone.{name}"].flatten() / 255 for name in ("mean", "std"))
    every = np.stack([bands(number) for number in range(IMAGES)])
    np.testing.assert_allclose(mean, every.mean(axis=(0, 1, 2)), rtol=0.15)  # the held-out ones are among them
    np.testing.assert_allclose(std, every.std(axis=(0, 1, 2)), rtol=0.15)


def test_predict_takes_files_of_five_channels_and_refuses_others(outcome: Any, sets: Path, tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "rgb.png")
    model, tile = must.load("student", sets / "bands.yaml", sets / "root"), str(sets / "tiles/20.npy")
    labels = model.predict(tile)
    assert np.isfinite(labels["index"].value["values"]).all()
    with pytest.raises(DataError, match=r"rgb\.png: is a picture, and no image of 5 channels"):
        model.predict(str(tmp_path / "rgb.png"))
    with pytest.raises(SystemExit, match="0"):
        main(["predict", tile, str(tmp_path / "out"), "--to", "pictures", "--root", str(sets / "root")])


def test_export_student_of_five_channels_is_a_timm_checkpoint(outcome: Any, tmp_path: Path) -> None:
    lines = export_student("safetensors", outcome.artifacts["student"], tmp_path / "backbone.safetensors")
    assert "in_chans=5" in lines[1]
    model = timm.create_model(
        "test_resnet", num_classes=0, in_chans=5, checkpoint_path=str(tmp_path / "backbone.safetensors")
    )
    assert model.eval()(torch.zeros(1, 5, SIDE, SIDE)).isfinite().all()
    with pytest.raises(ConfigError, match="hf takes students of images of 3 channels; these have 5"):
        export_student("hf", outcome.artifacts["student"], tmp_path / "hf")


def test_export_labels_refuses_forms_that_hold_pictures_alone(outcome: Any, sets: Path, tmp_path: Path) -> None:
    recipe = parse_recipe((sets / "bands.yaml").read_text("utf-8"), "r")
    root = Root.of(str(sets / "root"))
    with pytest.raises(ConfigError, match="--to coco takes images of 3 channels; these have 5: masks and webdataset"):
        export_labels(recipe, root, LabelExport("coco", tmp_path / "coco"))
    export_labels(recipe, root, LabelExport("webdataset", tmp_path / "tars"))
    assert {shard.channels for shard in held_out_shards({}, find_inputs(recipe, root, "student")[1])} == {5}


def test_ingest_quarantines_an_image_of_other_channels(sets: Path, tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    for number in range(3):
        np.save(tmp_path / f"tiles/{number}.npy", bands(number)[..., : 5 - (number == 2)])
    recipe = RECIPE.replace("FOLDER/tiles", str(tmp_path / "tiles")).replace("FOLDER", str(sets))
    (tmp_path / "r.yaml").write_text(recipe, "utf-8")
    with pytest.raises(DataError, match=r"2\.npy: has 4 channels, not 5"):
        must.run(tmp_path / "r.yaml", tmp_path / "root")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("data.tiles.channels=4", "pool: set 'tiles' has images of 4 channels, set 'fields' of 5, and a student"),
        ("data.tiles.channels=3", "pool: set 'tiles' has images of 3 channels, set 'fields' of 5, and a student"),
        (
            "evaluate={probes: [linear_dense], corruptions: true}",
            "evaluate.corruptions: corruptions can only take images of 3 channels; set 'fields' has 5",
        ),
        (
            "stages=[{name: s, method: distill, teacher: index, data: [tiles], batch: 4, steps: 1}]",
            "stages.s: this use of method 'distill' can only take images of 3 channels; set 'tiles' has 5",
        ),
        (
            "stages=[{name: s, method: pretext, pretexts: [hog], data: [tiles], batch: 4, steps: 1}]",
            "stages.s: this use of method 'pretext' can only take images of 3 channels; set 'tiles' has 5",
        ),
        (
            "stages=[{name: s, method: simclr, data: [tiles, pictures], batch: 4, steps: 1}]",
            "stages.s: set 'tiles' has images of 5 channels, set 'pictures' of 3, and a backbone takes",
        ),
        (
            "stages=[{name: s, method: simclr, data: [pictures], batch: 4, steps: 1}]",
            "stages.s: the backbone of 'student' is for images of 5 channels, as in set 'tiles'; set 'pictures' has",
        ),
        (
            "compare={c: {data: [pictures], set: fields, methods: {simclr: {method: simclr}}}}",
            "compare.c: set 'fields' has images of 5 channels, set 'pictures' of 3, and a backbone takes",
        ),
        (
            "compare={c: {data: [pictures], starts: [teacher.index], methods: {simclr: {method: simclr}}}}",
            "compare.c: the backbone of 'teacher.index' is for images of 5 channels, as in set 'fields'; set",
        ),
        ("resized={fields: 64}", "resized: reduced copies can only take images of 3 channels; set 'fields' has 5"),
        (
            "teachers.texture={kind: analytic}",
            "teachers.texture: models of kind 'analytic' can only take images of 3 channels; set 'tiles' has 5. Leave "
            "teachers.texture out",
        ),
    ],
)
def test_check_channels_refuses_what_takes_other_images(more: str, says: str, sets: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        build_steps(parse_recipe(RECIPE.replace("FOLDER", str(sets)), "r", [PICTURES, more]))


@pytest.mark.slow
def test_backbones_for_five_channels_go_through_stages_probes_and_comparisons(sets: Path, tmp_path: Path) -> None:
    """From the student, from scratch, and from a backbone for pictures, whose first convolution is adapted."""
    weights = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("FOLDER", str(sets)), "utf-8")
    settings = "method: simclr, data: [tiles, fields], batch: 8, steps: 4"
    overrides = [
        f"stages=[{{name: own, {settings}}}, {{name: adapted, start: {weights}, {settings}}}]",
        "evaluate={probes: [linear_dense], finetune: [fields], labels: [8], starts: [stage.adapted]}",
        f"compare={{c: {{data: [tiles], set: fields, methods: {{byol: {{method: byol}}}}, starts: [scratch, {weights}],"
        "steps: [2], batch: 4, probes: [linear_dense], seeds: 1}}",
    ]
    outcome = must.run(tmp_path / "r.yaml", sets / "root", overrides)
    for name in ("own", "adapted"):
        about = outcome.artifacts[f"stage.{name}"].load("backbone.json", read_json)
        assert np.all(np.array(about["mean"]) > np.array(LOWEST))
        assert np.all(np.array(about["mean"]) < np.array(HIGHEST))
    assert outcome.folder
    measured = json.loads((outcome.folder / "measured.json").read())
    assert {each["start"] for each in measured} == {"scratch", "stage.adapted"}
    assert all(np.isfinite(each["value"]) for each in measured)
    compared = must.run(tmp_path / "r.yaml", sets / "root", overrides, Selection(last="compare"))
    assert compared.folder
    rows = {each["trial"]["start"] for each in json.loads((compared.folder / "measured.json").read())}
    assert rows == {"scratch", str(weights)}


def test_data_step_of_pictures_is_as_before_there_were_channels(sets: Path) -> None:
    text = RECIPE.replace("FOLDER", str(sets)).replace("channels: 5, arrays", "arrays").replace(", channels: 5", "")
    steps = build_steps(parse_recipe(text, "r"))
    assert all("channels" not in step.config["source"] for step in steps if step.name.startswith("data."))


def test_browser_shows_images_of_five_channels(outcome: Any, sets: Path) -> None:
    loading = Loading(Root.of(str(sets / "root")))
    loading.refresh()
    assert not loading.progress.damaged
    picture = Pictures(loading).image(0, 64)
    assert (picture.mode, picture.size) == ("RGB", (64, 64))
    assert len(np.unique(np.asarray(picture))) > 5
