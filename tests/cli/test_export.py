"""`must export labels` from the command line: what it says, what it leaves, and what it refuses and why."""

from __future__ import annotations

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

Said = pytest.CaptureFixture[str]


def ends(code: int, *arguments: str | Path) -> None:
    """The command ends with `code`."""
    with pytest.raises(SystemExit) as ended:
        main(["export", "labels", *(str(argument) for argument in arguments)])
    assert (ended.value.code or 0) == code


def nothing_left(folder: Path) -> None:
    assert not list(folder.iterdir()), "an export that failed left something"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "exports").mkdir()
    return tmp_path / "exports" / "out"


@pytest.fixture
def made(finished_root: Path, recipe: Path, out: Path) -> list[Path]:
    """The command's arguments for a recipe that was run."""
    return [recipe, out, Path("--root"), finished_root]


def test_the_pool_comes_out_with_a_summary(finished_root: Path, recipe: Path, out: Path, capsys: Said) -> None:
    ends(0, recipe, out, "--to", "masks", "--root", finished_root)
    said = capsys.readouterr().out
    assert f"Wrote 48 images to {out}." in said
    assert "masks (segmentation): 48 images, in masks" in said
    assert "not held: the confidence of each pixel" in said
    assert "gabor is left out: masks has no place for texture: its labels are rasters" in said
    summary: dict[str, Any] = json.loads((out / "export.json").read_text("utf-8"))
    assert (summary["form"], summary["recipe"], summary["labels"]) == ("masks", "tiny", "true_first")
    assert summary["thresholds"] == {"masks": 0.5, "gabor": 0.0}
    assert summary["images"] == 48
    assert len(list(masks.Source(masks.Config(path=str(out))).records())) == 48


def test_overrides_change_labels_as_they_change_the_student(finished_root: Path, recipe: Path, out: Path) -> None:
    more = ("-o", "student.labels=true_only", "-o", "student.thresholds.masks=0.9", "--head", "masks")
    ends(0, recipe, out, "--to", "coco", "--root", finished_root, *more)
    summary = json.loads((out / "export.json").read_text("utf-8"))
    assert (summary["images"], summary["labels"], summary["thresholds"]) == (12, "true_only", {"masks": 0.9})
    assert not summary["left_out"]


def test_an_empty_folder_may_be_there(finished_root: Path, recipe: Path, out: Path) -> None:
    out.mkdir()
    ends(0, recipe, out, "--to", "hf", "--root", finished_root)
    assert (out / "export.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--to", "cocoa"], 2, "--to 'cocoa' is unknown. Did you mean 'coco'? Known: coco, "),
        (["--to", "coco", "--head", "mask"], 2, "--head 'mask' is unknown. Did you mean 'masks'"),
        (["--to", "coco", "--head", "gabor"], 2, "coco can hold labels for detection, segmentation, and the heads are"),
        (["--to", "coco", "-o", "student.thresholds.mask=1"], 2, "student.thresholds names 'mask'"),
        (["--to", "coco", "-o", "data.pool.seed=77"], 3, "there is nothing for pool, label, data.pool as the recipe"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_work(
    arguments: list[str], code: int, says: str, made: list[Path], capsys: Said
) -> None:
    ends(code, *made, *arguments)
    assert says in capsys.readouterr().err
    nothing_left(made[1].parent)


def test_labels_that_were_never_made_are_named(tmp_path: Path, out: Path, capsys: Said) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE, "utf-8")
    ends(3, tmp_path / "tiny.yaml", out, "--to", "coco", "--root", tmp_path / "root")
    assert "`must label` with this recipe and root makes it" in capsys.readouterr().err
    nothing_left(out.parent)


def test_a_folder_with_something_in_it_is_left_alone(
    finished_root: Path, recipe: Path, out: Path, capsys: Said
) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("mine", "utf-8")
    ends(2, recipe, out, "--to", "coco", "--root", finished_root)
    assert f"{out}: already exists and is not empty; name another folder" in capsys.readouterr().err
    ends(2, recipe, out / "mine.txt", "--to", "coco", "--root", finished_root)
    assert "is a file or a link, not a folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_written_and_a_url_are_refused(
    finished_root: Path, recipe: Path, out: Path, capsys: Said
) -> None:
    out.write_text("a file where a folder would have to be", "utf-8")
    ends(2, recipe, out / "deep", "--to", "coco", "--root", finished_root)
    assert f"{out / 'deep'}: can't be written (Not a directory)" in capsys.readouterr().err
    ends(2, recipe, "s3://bucket/out", "--to", "coco", "--root", finished_root)
    assert "exports are written to this machine" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(
    finished_root: Path, recipe: Path, out: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = form.Writer.add

    def fill(self: form.Writer, sample: Any) -> None:
        add(self, sample)
        if self.counts["masks"]["images"] == 7:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(form.Writer, "add", fill)
    ends(3, recipe, out, "--to", "coco", "--root", finished_root)
    assert f"export: the disk that holds {out} is full" in capsys.readouterr().err
    nothing_left(out.parent)


def test_a_shard_that_is_damaged_is_named(finished_root: Path, recipe: Path, out: Path, capsys: Said) -> None:
    shard = next(iter(finished_root.glob("labels/masks-*/*.parquet")))
    before = shard.read_bytes()
    shard.write_bytes(before[:-9] + b"\0" * 9)
    try:
        ends(3, recipe, out, "--to", "coco", "--root", finished_root)
    finally:
        shard.write_bytes(before)
    assert f"{shard}: not a readable label shard" in capsys.readouterr().err
    nothing_left(out.parent)


def test_corrected_labels_make_a_new_student_and_no_new_labels(
    finished_root: Path, recipe: Path, tmp_path: Path
) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    shutil.copytree(finished_root, root)
    ends(0, recipe, out, "--to", "masks", "--root", root, "--head", "masks")
    for file in (out / "masks" / "train").iterdir():
        Image.new("L", Image.open(file).size, 2).save(file)
    fixed = [f"data.fixed={{kind: masks, path: {out}}}", "student.truths.masks=[fixed]"]
    outcome = must.run(recipe, root, fixed, Selection("student"))
    assert outcome.ran == 3, "the set is read, the pool gathered, the student trained"
    before = {each.step.name: each.artifact for each in must.plan(recipe, root)}
    for name in ("label", "teacher.masks", "student"):
        was, now = before[name], outcome.artifacts[name]
        assert was is not None
        assert (was.fingerprint == now.fingerprint) == (name != "student")
    ends(
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
