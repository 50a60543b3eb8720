"""The commands `must predict` and `must embed`: their output, their files and their errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import must
import tasks
from cli.main import main
from cli.predict import parse_thresholds
from pipeline.errors import ConfigError
from pipeline.predictions import form_names
from pipeline.stores.labels import LabelShard
from tests.disk import stored

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, noise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Changes to a folder with `photos`: three images, in folders, and one that is damaged; beside it a text."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.png", "deep/a.png")):
        Image.fromarray(noise(number, 30, 40 + number)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("notes", "utf-8")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def run(finished_root: Path) -> Callable[..., None]:
    """Runs a command on the root of a finished run: (exit code, command, *arguments)."""

    def run(code: int, *arguments: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--root", str(finished_root), "--device", "cpu"])
        assert (ended.value.code or 0) == code

    return run


def test_predict_writes_json_lines_and_tells_what_is_damaged(run: Callable[..., None], capsys: Output) -> None:
    run(0, "predict", "photos", "out", "--to", "json")
    printed = capsys.readouterr().out
    assert "Wrote what student says about 3 images to out." in printed
    assert "masks (segmentation): 3 images, in predictions.jsonl" in printed
    assert "1 could not be used:\n  photos/broken.jpg: not an image" in printed
    lines = [json.loads(line) for line in Path("out/predictions.jsonl").read_text("utf-8").splitlines()]
    assert [line["file"] for line in lines] == ["photos/a.jpg", "photos/b.png", "photos/deep/a.png"]
    assert [(line["width"], line["height"]) for line in lines] == [(40, 30), (41, 30), (42, 30)]
    assert set(lines[0]["labels"]) == {"masks", "gabor"}
    summary = json.loads(Path("out/predictions.json").read_text("utf-8"))
    assert summary["unreadable"]["count"] == 1
    assert summary["unreadable"]["first"][0]["file"] == "photos/broken.jpg"
    assert (summary["form"], summary["model"], summary["images"]) == ("json", "student", 3)
    assert summary["thresholds"] == {"masks": 0.5, "gabor": 0.0}


def test_predict_writes_parquet_with_the_label_stores_columns(run: Callable[..., None], finished_root: Path) -> None:
    run(0, "predict", "photos/*.png", "photos/a.jpg", "out", "--to", "parquet", "--model", "masks", "--threshold", "0")
    table = pq.read_table("out/masks.parquet")
    assert table.column("source").to_pylist() == ["photos/b.png", "photos/a.jpg"]
    shard = LabelShard(stored(Path("out/masks.parquet")), tasks.label_of_file(table.schema, "file"))
    model = must.load("masks", root=finished_root, device="cpu")
    expected = model.predict("photos/b.png", threshold=0)["masks"].value
    found = shard.value(0)
    assert found is not None
    np.testing.assert_array_equal(found["classes"], expected["classes"])


def test_predict_draws_pictures_of_a_chosen_head(run: Callable[..., None]) -> None:
    run(0, "predict", "photos/b.png", "photos/deep", "out", "--to", "pictures", "--head", "masks", "--batch", "1")
    assert sorted(str(file) for file in Path("out").rglob("*.jpg")) == [
        "out/masks/photos/b.jpg",
        "out/masks/photos/deep/a.jpg",
    ]
    assert Image.open("out/masks/photos/b.jpg").size == (41, 30)
    assert list(json.loads(Path("out/predictions.json").read_text("utf-8"))["heads"]) == ["masks"]


def test_predict_writes_coco_and_copies_no_image(run: Callable[..., None], recipe: Path, capsys: Output) -> None:
    run(0, "predict", "photos", "out", "--to", "coco", "--recipe", str(recipe), "--threshold", "masks=0.9")
    assert "gabor is left out: coco has no place for texture" in capsys.readouterr().out
    content = json.loads(Path("out/stuff.json").read_text("utf-8"))
    assert [image["file_name"] for image in content["images"]] == ["photos/a.jpg", "photos/b.png", "photos/deep/a.png"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["predictions.json", "stuff.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["photos", "out", "--to", "jsn"],
            2,
            "--to 'jsn' is unknown. Did you mean 'json'? Known: coco, json,",
        ),
        (["photos", "out", "--to", "json", "--head", "mask"], 2, "head 'mask' is unknown. Did you mean 'masks'"),
        (["photos", "out", "--to", "json", "--model", "mask"], 2, "model 'mask' is unknown. Did you mean 'masks'"),
        (["photos", "out", "--to", "json", "--threshold", "high"], 2, "--threshold 'high': write a number"),
        (["photos", "out", "--to", "json", "--threshold", "7"], 2, "threshold 7.0: is no probability"),
        (
            ["photos", "out", "--to", "coco", "--head", "gabor"],
            2,
            "hold labels for detection, masks, keypoints, segmentation",
        ),
        (["nowhere", "out", "--to", "json"], 2, "nowhere: there is no such file or folder"),
        (["photos/*.bmp", "out", "--to", "json"], 2, "photos/*.bmp: there is no file or folder that matches this"),
        (["photos", "photos", "--to", "json"], 2, "photos: already exists and is not empty"),
        (["photos", "out", "--to", "json", "-o", "seed=1"], 2, "-o 'seed=1': changes a recipe, and there is none"),
        (["photos/broken.jpg", "out", "--to", "json"], 3, "not one of 1 images can be used; the first: photos/broken"),
        (["photos/notes.txt", "out", "--to", "json"], 3, "photos/notes.txt: not an image"),
    ],
)
def test_predict_refuses_what_cannot_be_with_what_would_work(
    arguments: list[str], code: int, message: str, run: Callable[..., None], capsys: Output
) -> None:
    run(code, "predict", *arguments)
    assert message in capsys.readouterr().err
    assert not Path("out").exists()
    assert sorted(path.name for path in Path().iterdir() if path.name != "root") == ["photos"]


@pytest.mark.parametrize("form", form_names())
def test_predict_leaves_nothing_when_it_is_stopped(
    form: str, finished_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.inference.model import TrainedModel  # noqa: PLC0415 - torch

    stream = TrainedModel.stream

    def broken(*given: Any, **more: Any) -> Any:
        yield from stream(*given, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainedModel, "stream", broken)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(["predict", "photos", "out", "--to", form, "--root", str(finished_root), "--device", "cpu"])
    assert [path.name for path in Path().iterdir()] == ["photos"]


def test_embed_writes_vectors_with_names(run: Callable[..., None], finished_root: Path, capsys: Output) -> None:
    expected = must.load("student", root=finished_root, device="cpu").embed(["photos/a.jpg", "photos/b.png"])
    run(0, "embed", "photos/a.jpg", "photos/b.png", "photos/broken.jpg", "new/vectors.npy")
    assert "Wrote 2 vectors to new/vectors.npy.\n1 could not be used:\n" in capsys.readouterr().out
    np.testing.assert_allclose(np.load("new/vectors.npy"), expected, atol=1e-5)
    with open("new/vectors.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["photos/a.jpg", "photos/b.png"]
    run(0, "embed", "photos", "vectors.parquet")
    table = pq.read_table("vectors.parquet")
    assert table.column("name").to_pylist() == ["photos/a.jpg", "photos/b.png", "photos/deep/a.png"]
    assert table.column("key").to_pylist()[0] == rows[0]["key"]
    found = np.stack(table.column("vector").to_numpy())
    np.testing.assert_allclose(found[:2], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["photos", "vectors.csv"], 2, "OUT 'vectors.csv': end it in .parquet or .npy, which says its format"),
        (["photos", "vectors.npy", "--model", "gabor"], 2, "model 'gabor' tells no vectors of images"),
        (["photos/broken.jpg", "vectors.npy"], 3, "not one of 1 images can be used"),
        (["photos/broken.jpg", "vectors.parquet"], 3, "not one of 1 images can be used"),
        (["photos", "photos/notes.txt/vectors.npy"], 2, "can't be written (File exists)"),
        (["photos/a.jpg", "photos/kept.npy"], 2, "photos/kept.npy: already exists; name another file, or remove it."),
        (["photos/a.jpg", "photos/named.npy"], 2, "photos/named.csv: already exists"),
        (["photos/a.jpg", "photos/kept.parquet"], 2, "photos/kept.parquet: already exists"),
    ],
)
def test_embed_refuses_what_cannot_be_with_what_would_work(
    arguments: list[str], code: int, message: str, run: Callable[..., None], capsys: Output
) -> None:
    for name in ("kept.npy", "named.csv", "kept.parquet"):
        Path("photos", name).write_text("mine", "utf-8")
    run(code, "embed", *arguments)
    assert message in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["photos"]
    assert {Path("photos", name).read_text("utf-8") for name in ("kept.npy", "named.csv", "kept.parquet")} == {"mine"}


def test_parse_thresholds_of_all_heads_or_by_head() -> None:
    assert parse_thresholds([]) is None
    assert parse_thresholds(["0.3"]) == 0.3
    assert parse_thresholds(["a=0.3", "b=1"]) == {"a": 0.3, "b": 1}
    with pytest.raises(ConfigError, match="is for all heads and can't stand beside others"):
        parse_thresholds(["0.3", "b=1"])
