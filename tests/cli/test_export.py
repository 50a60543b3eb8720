"""The command `must export labels`: its output, its files and its errors."""

from __future__ import annotations

import csv
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import must
import pipeline.export.coco as form
from cli.main import main
from flows.plan.selection import Selection
from pipeline.sources import masks
from tests.flows.tiny import RECIPE

Output = pytest.CaptureFixture[str]


def assert_exit_code(code: int, *arguments: str | Path) -> None:
    """Run the command and check its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["export", "labels", *(str(argument) for argument in arguments)])
    assert (ended.value.code or 0) == code


def assert_empty(folder: Path) -> None:
    assert not list(folder.iterdir()), "an export that failed left something"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "exports").mkdir()
    return tmp_path / "exports" / "out"


@pytest.fixture
def finished_run(finished_root: Path, recipe: Path, out: Path) -> list[Path]:
    """Return the command's arguments for a recipe that was run."""
    return [recipe, out, Path("--root"), finished_root]


def test_export_labels_writes_the_pool_and_a_summary(
    finished_root: Path, recipe: Path, out: Path, capsys: Output
) -> None:
    assert_exit_code(0, recipe, out, "--to", "masks", "--root", finished_root)
    printed = capsys.readouterr().out
    assert f"Wrote 50 images to {out} (48 train, 2 val)." in printed
    assert "masks (segmentation): 50 images, in masks" in printed
    assert "not held: the confidence of each pixel" in printed
    assert "gabor is left out: masks has no place for texture: its labels are rasters" in printed
    summary: dict[str, Any] = json.loads((out / "export.json").read_text("utf-8"))
    assert (summary["form"], summary["recipe"], summary["labels"]) == ("masks", "tiny", "true_first")
    assert summary["thresholds"] == {"masks": 0.5, "gabor": 0.0}
    assert (summary["images"], summary["splits"], summary["names"]) == (50, {"train": 48, "val": 2}, "source")
    assert len(list(masks.Source(masks.Config(path=str(out))).records())) == 50
    with open(out / "labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["file"] == f"{row['set']}/{row['source']}" for row in rows)
    assert (out / "images" / "train" / rows[0]["file"]).exists()


def test_export_labels_names_images_by_their_keys(finished_root: Path, recipe: Path, out: Path) -> None:
    assert_exit_code(0, recipe, out, "--to", "masks", "--root", finished_root, "--names", "hash")
    with open(out / "labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"].partition(".")[0] for row in rows} == {row["key"] for row in rows}
    assert len(list((out / "images" / "train").iterdir())) == 48


def test_export_labels_applies_overrides_of_the_student(finished_root: Path, recipe: Path, out: Path) -> None:
    more = ("-o", "student.labels=true_only", "-o", "student.thresholds.masks=0.9", "--head", "masks")
    assert_exit_code(0, recipe, out, "--to", "coco", "--root", finished_root, *more)
    summary = json.loads((out / "export.json").read_text("utf-8"))
    assert (summary["images"], summary["labels"], summary["thresholds"]) == (14, "true_only", {"masks": 0.9})
    assert not summary["left_out"]


def test_export_labels_accepts_an_empty_folder(finished_root: Path, recipe: Path, out: Path) -> None:
    out.mkdir()
    assert_exit_code(0, recipe, out, "--to", "hf", "--root", finished_root)
    assert (out / "export.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "cocoa"], 2, "--to 'cocoa' is unknown. Did you mean 'coco'? Known: coco, "),
        (["--to", "coco", "--names", "file"], 2, "--names 'file' is unknown. Known: hash, source"),
        (["--to", "coco", "--head", "mask"], 2, "--head 'mask' is unknown. Did you mean 'masks'"),
        (
            ["--to", "coco", "--head", "gabor"],
            2,
            "hold labels for detection, masks, keypoints, segmentation, and the heads are",
        ),
        (["--to", "coco", "-o", "student.thresholds.mask=1"], 2, "student.thresholds names 'mask'"),
        (["--to", "coco", "-o", "data.pool.seed=77"], 3, "there is nothing for pool, label, data.pool as the recipe"),
    ],
)
def test_export_labels_refuses_wrong_options_with_what_would_work(
    arguments: list[str], code: int, message: str, finished_run: list[Path], capsys: Output
) -> None:
    assert_exit_code(code, *finished_run, *arguments)
    assert message in capsys.readouterr().err
    assert_empty(finished_run[1].parent)


def test_export_labels_names_labels_that_were_never_made(tmp_path: Path, out: Path, capsys: Output) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE, "utf-8")
    assert_exit_code(3, tmp_path / "tiny.yaml", out, "--to", "coco", "--root", tmp_path / "root")
    assert "`must label` with this recipe and root makes it" in capsys.readouterr().err
    assert_empty(out.parent)


def test_export_labels_leaves_a_folder_with_files_alone(
    finished_root: Path, recipe: Path, out: Path, capsys: Output
) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("mine", "utf-8")
    assert_exit_code(2, recipe, out, "--to", "coco", "--root", finished_root)
    assert f"{out}: already exists and is not empty; name another folder" in capsys.readouterr().err
    assert_exit_code(2, recipe, out / "mine.txt", "--to", "coco", "--root", finished_root)
    assert "is a file or a link, not a folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_export_labels_refuses_an_unwritable_folder_and_a_url(
    finished_root: Path, recipe: Path, out: Path, capsys: Output
) -> None:
    out.write_text("a file where a folder would have to be", "utf-8")
    assert_exit_code(2, recipe, out / "deep", "--to", "coco", "--root", finished_root)
    assert f"{out / 'deep'}: can't be written (Not a directory)" in capsys.readouterr().err
    assert_exit_code(2, recipe, "s3://bucket/out", "--to", "coco", "--root", finished_root)
    assert "exports are written to this machine" in capsys.readouterr().err


def test_export_labels_leaves_nothing_on_a_full_disk(
    finished_root: Path, recipe: Path, out: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = form.Writer.add

    def fill(self: form.Writer, sample: Any) -> None:
        add(self, sample)
        if self.counts["masks"]["images"] == 7:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(form.Writer, "add", fill)
    assert_exit_code(4, recipe, out, "--to", "coco", "--root", finished_root)
    assert f"export: this machine is short of space: the disk that holds {out} is full" in capsys.readouterr().err
    assert_empty(out.parent)


def test_export_labels_names_a_damaged_shard(finished_root: Path, recipe: Path, out: Path, capsys: Output) -> None:
    shard = next(iter(finished_root.glob("labels/masks-*/*.parquet")))
    before = shard.read_bytes()
    shard.write_bytes(before[:-9] + b"\0" * 9)
    try:
        assert_exit_code(3, recipe, out, "--to", "coco", "--root", finished_root)
    finally:
        shard.write_bytes(before)
    assert f"{shard}: its bytes changed since it was made" in capsys.readouterr().err
    assert_empty(out.parent)


def test_export_labels_corrected_make_a_new_student_and_no_new_labels(
    finished_root: Path, recipe: Path, tmp_path: Path
) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    shutil.copytree(finished_root, root)
    assert_exit_code(0, recipe, out, "--to", "masks", "--root", root, "--head", "masks")
    for file in (out / "masks" / "train").rglob("*.png"):
        Image.new("L", Image.open(file).size, 2).save(file)
    fixed = [f"data.fixed={{kind: masks, path: {out}}}", "student.truths.masks=[fixed]"]
    outcome = must.run(recipe, root, fixed, Selection("student"))
    assert outcome.ran == 3, "the set is read, the pool gathered, the student trained"
    before = {each.step.name: each.artifact for each in must.plan(recipe, root)}
    for name in ("label", "teacher.masks", "student"):
        was, now = before[name], outcome.artifacts[name]
        assert was is not None
        assert (was.fingerprint == now.fingerprint) == (name != "student")
    assert_exit_code(
        0,
        recipe,
        tmp_path / "again",
        "--to",
        "coco",
        "--root",
        root,
        "--head",
        "masks",
        *("-o", fixed[0], "-o", fixed[1]),
    )
    content = json.loads((tmp_path / "again" / "stuff_train.json").read_text("utf-8"))
    assert {(each["category_id"], each["score"]) for each in content["annotations"]} == {(3, 1.0)}
    assert len(content["annotations"]) == len(content["images"]) == 48
