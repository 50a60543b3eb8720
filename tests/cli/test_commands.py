"""The commands `must init`, `must doctor` and `must export student`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

import must
from cli.main import main
from pipeline.recipe.reader import expand, read_recipe
from pipeline.recipe.yaml_text import parse_yaml, read_text
from pipeline.sources import coco
from tasks.network import Network


def write_image(path: Path, shade: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (40, 30), shade if mode == "L" else (shade, 90, 40)).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Folders with unlabelled images, classes and masks, whose names are not valid recipe keys."""
    for number in range(6):
        write_image(tmp_path / "My photos" / "deep" / f"{number}.jpg", 10 * number)
        write_image(
            tmp_path / "kinds" / ("train" if number < 4 else "val") / "ab"[number % 2] / f"{number}.jpg", number
        )
        write_image(tmp_path / "2street" / "images" / f"{number}.png", 20 * number)
        write_image(tmp_path / "2street" / "masks" / f"{number}.png", number % 2, "L")
    (tmp_path / "2street" / "classes.json").write_text('["road", "sky"]', "utf-8")
    return [tmp_path / "My photos", tmp_path / "kinds", tmp_path / "2street"]


def assert_exit_code(code: int, *arguments: str | Path) -> None:
    """Run the command and check its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert (ended.value.code or 0) == code


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_main_prints_signs_that_the_terminal_lacks_as_question_marks(tmp_path: Path, encoding: str) -> None:
    write_image(tmp_path / "\u5e97" / "1.jpg", 10)
    command = [sys.executable, "-m", "cli", "init", str(tmp_path / "\u5e97"), "--to", str(tmp_path / "r.yaml")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("\u5e97".encode() if encoding == "utf-8" else b"/?") in done.stdout


@pytest.mark.parametrize(
    "name",
    ['the "best" ones', "back\\slash", "tab\tbed", "caf\u00e9 #1: x", "\udcff", "it's", "{a}, [b]", "a ${HOME} b"],
)
def test_init_writes_any_folder_name_as_yaml(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name / "1.jpg", 10)
    assert_exit_code(0, "init", tmp_path / name, "--to", tmp_path / "mine.yaml")
    written = parse_yaml(read_text(tmp_path / "mine.yaml"), "mine.yaml")
    (source,) = expand(written["data"], "mine.yaml").values()
    assert source == {"kind": "folder", "path": str(tmp_path / name)}


@pytest.mark.parametrize("name", ["null", "no", "ON", "true", "off", "2024", "1e5", "x" * 150, "-", "~", "=", "<<"])
def test_init_writes_names_that_yaml_reads_otherwise(name: str, tmp_path: Path) -> None:
    for kind in ("a", "b"):
        write_image(tmp_path / name / kind / "1.jpg", 10)
    to = tmp_path / f"{name}.yaml"
    assert_exit_code(0, "init", tmp_path / name, "--to", to)
    recipe = read_recipe(to)
    assert [teacher.task for teacher in recipe.teachers.values()] == ["classification"]
    assert recipe.pool == list(recipe.data)


def test_init_of_folders_without_labels_leaves_the_teachers_to_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "photos" / "1.jpg", 10)
    to = tmp_path / "mine.yaml"
    assert_exit_code(0, "init", tmp_path / "photos", "--to", to)
    written = parse_yaml(read_text(to), "mine.yaml")
    assert written["teachers"] == {}
    assert "None of them has labels: add a teacher" in capsys.readouterr().out


def test_init_writes_a_recipe_that_can_be_planned(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "mine.yaml"
    assert_exit_code(0, "init", *folders, "--to", to)
    printed = capsys.readouterr().out
    recipe = read_recipe(to)
    assert {name: entry.kind for name, entry in recipe.data.items()} == {
        "my_photos": "folder",
        "kinds": "imagefolder",
        "set_2street": "masks",
    }
    assert {name: teacher.task for name, teacher in recipe.teachers.items()} == {
        "kinds_classification": "classification",
        "set_2street_segmentation": "segmentation",
    }
    assert recipe.pool == ["my_photos", "kinds", "set_2street"]
    assert "My photos: folder, without labels" in printed
    assert "kinds: imagefolder, with labels for classification" in printed
    assert {planned.action for planned in must.plan(to, tmp_path / "root")} == {"run"}


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        ("images/train/{}.jpg", "labels/train/{}.txt", "3 .txt. If these are YOLO's labels"),
        ("JPEGImages/{}.jpg", "Annotations/{}.xml", "3 .xml. If these are Pascal VOC's labels"),
        ("photos/{}.jpg", "about/{}.json", "3 .json. If these are COCO's"),
    ],
)
def test_init_takes_no_folder_of_other_labels_for_a_class(
    images: str, labels: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_image(tmp_path / "things" / images.format(number), number)
        (tmp_path / "things" / labels.format(number)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "things" / labels.format(number)).write_text("0 0.5 0.5 0.1 0.1", "utf-8")
    assert_exit_code(0, "init", tmp_path / "things", "--to", tmp_path / "mine.yaml")
    assert f"things: folder, without labels; not read: {says}" in capsys.readouterr().out


def test_init_reads_coco_files_beside_their_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "valid"):
        write_image(tmp_path / "fish" / split / "1.jpg", 1)
        content = {
            "images": [{"id": 1, "file_name": "1.jpg"}],
            "categories": [{"id": 1, "name": "fish"}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}],
        }
        (tmp_path / "fish" / split / "_annotations.coco.json").write_text(json.dumps(content), "utf-8")
    assert_exit_code(0, "init", tmp_path / "fish", "--to", tmp_path / "mine.yaml")
    assert "fish: coco, with labels for detection\n" in capsys.readouterr().out
    source = coco.Source(coco.Config(path=str(tmp_path / "fish")))
    assert [(record.name, record.split) for record in source.records()] == [
        ("train/1.jpg", "train"),
        ("valid/1.jpg", "val"),
    ]


def test_init_reads_csv_files_and_lists_in_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        write_image(tmp_path / "listed/images" / f"{number}.jpg", number)
    (tmp_path / "listed/labels.csv").write_text("image,label\nimages/0.jpg,a\nimages/1.jpg,b\n", "utf-8")
    (tmp_path / "several").mkdir()
    image = (tmp_path / "listed/images/2.jpg").read_bytes()
    pq.write_table(pa.table({"image": [image], "label": [["a", "b"]]}), tmp_path / "several/train.parquet")
    to = tmp_path / "mine.yaml"
    assert_exit_code(0, "init", tmp_path / "listed", tmp_path / "several", "--to", to)
    recipe = read_recipe(to)
    assert {name: entry.kind for name, entry in recipe.data.items()} == {"listed": "csv", "several": "parquet"}
    assert {name: teacher.task for name, teacher in recipe.teachers.items()} == {
        "listed_classification": "classification",
        "several_multilabel": "multilabel",
    }
    assert "# require: {map: 0.3}" in to.read_text("utf-8")
    assert "several: parquet, with labels for multilabel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["kinds", "--to", "there.yaml"], 2, "there.yaml exists already"),
        (["kinds", "other/kinds"], 2, "Two of the folders have the same name"),
        (["empty"], 3, "empty: no images in a known layout found; known are coco, "),
        (["nowhere"], 3, "nowhere: there is no such folder."),
        (["nameless"], 2, "classes.json"),
    ],
)
@pytest.mark.usefixtures("folders")
def test_init_refuses_unusable_folders(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.chdir(tmp_path):
        Path("there.yaml").write_text("mine", "utf-8")
        Path("empty").mkdir()
        shutil.copytree("2street", "nameless", ignore=shutil.ignore_patterns("classes.json"))
        for mask in Path("nameless/masks").rglob("*.png"):  # photographs are no masks that tell their classes
            Image.merge("RGB", [Image.effect_noise((64, 64), 90) for _ in "RGB"]).save(mask)
        shutil.copytree("kinds", "other/kinds")
        assert_exit_code(code, "init", *arguments)
        assert message in capsys.readouterr().err
        assert Path("there.yaml").read_text("utf-8") == "mine"
        assert not Path("recipe.yaml").exists()


def test_doctor_finds_nothing_wrong_with_a_recipe_that_runs(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_exit_code(0, "doctor", recipe, "--root", tmp_path / "root")
    printed = capsys.readouterr().out
    assert "BAD" not in printed
    for what in ("python", "cores", "torch", "root", "device", "data.world", "teachers.masks", "student"):
        assert f"ok  {what} " in printed
    assert not (tmp_path / "root").exists()


def test_doctor_lists_all_problems_and_exits_with_2(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    text = recipe.read_text("utf-8").replace("student: {backbone: test_resnet", "student: {backbone: test_resnot")
    broken.write_text(text.replace("data:\n", f"data:\n  gone: {{kind: folder, path: {tmp_path / 'gone'}}}\n"), "utf-8")
    assert_exit_code(2, "doctor", broken, "--root", tmp_path)
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD")]
    assert [line.split()[1] for line in bad] == ["data.gone", "student"]
    assert "Did you mean 'test_resnet'" in bad[1]


def test_doctor_plans_the_recipe_as_a_run_does(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(f"{recipe.read_text('utf-8')}\nevaluate: {{probes: [knn]}}\n", "utf-8")
    assert_exit_code(2, "doctor", broken, "--root", tmp_path)
    assert "evaluate.probes is ['knn'], but no set has labels that they learn from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "RECIPE", "--root", ""], "root '': name a folder"),
        (["run", "RECIPE", "--root", "RECIPE"], "recipe.yaml is a file; name a folder"),
        (["artifacts", "ls", "--root", "RECIPE/inside"], "recipe.yaml is a file; name a folder"),
        (["artifacts", "gc", "--delete", "--root", "nowhere"], "--root: there is no folder"),
    ],
)
def test_commands_refuse_what_is_no_root(
    arguments: list[str], message: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copy(recipe, tmp_path / "recipe.yaml")
    with contextlib.chdir(tmp_path):
        assert_exit_code(2, *(each.replace("RECIPE", str(copy)) for each in arguments))
        assert message in capsys.readouterr().err
        assert [path.name for path in Path().iterdir()] == ["recipe.yaml"]


def test_doctor_checks_data_also_if_a_start_is_misspelt(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(f"{recipe.read_text('utf-8')}\nevaluate: {{probes: [knn], starts: [studnt]}}\n", "utf-8")
    assert_exit_code(2, "doctor", broken, "--root", tmp_path)
    printed = capsys.readouterr().out
    assert "ok  data.world" in printed
    assert "Did you mean 'student'" in printed


def test_export_student_gives_the_same_features_in_timm(
    finished_root: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out" / "backbone.safetensors"
    assert_exit_code(0, "export", "student", recipe, to, "--root", finished_root, "--to", "safetensors")
    line = f"timm.create_model('test_resnet', num_classes=0, checkpoint_path='{to}')"
    assert line in capsys.readouterr().out
    student = next(each.artifact for each in must.plan(recipe, finished_root) if each.step.name == "student")
    assert student is not None
    backbone = student.load_all(Network.load).backbone
    images = torch.rand(2, 3, 64, 64)
    shown = backbone.normalize(images)
    again: Any = timm.create_model("test_resnet", num_classes=0, checkpoint_path=str(to)).eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(shown), backbone.readout(images).vector)
        fresh: Any = timm.create_model("test_resnet", num_classes=0).eval()
        assert not torch.allclose(fresh(shown), backbone(images))


def test_export_student_refuses_a_suffix_that_timm_does_not_know(
    finished_root: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_exit_code(
        2, "export", "student", recipe, tmp_path / "backbone.pth", "--root", finished_root, "--to", "safetensors"
    )
    assert "end it in .safetensors" in capsys.readouterr().err
    assert not (tmp_path / "backbone.pth").exists()


def test_export_student_refuses_a_student_that_was_not_made(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_exit_code(
        3, "export", "student", recipe, tmp_path / "backbone.safetensors", "--root", tmp_path, "--to", "safetensors"
    )
    assert "student" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
