"""Paths of a recipe begin in the folder of its file, wherever a run is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from pipeline.recipe.reader import as_written, parse_recipe, read_recipe
from pipeline.recipe.recipe import Recipe

TEXT = """
name: paths
data:
  pool: {kind: folder, path: photos/../pool}
  there: {kind: folder, path: /data/there}
  bucket: {kind: folder, path: "s3://bucket/pool"}
  home: {kind: folder, path: "~/pool"}
  mine: {kind: folder, path: "${MINE:-default}/pool"}
  scenes: {kind: scenes, count: 1, seed: 1, tasks: [segmentation]}
teachers:
  masks: {kind: supervised, task: segmentation, data: scenes, weights: w/teacher.pth}
  published: {kind: supervised, task: segmentation, data: scenes, weights: timm}
  packed: {kind: supervised, task: segmentation, data: scenes, weights: "package:a/b.pth"}
pool: [pool]
student: {weights: ../student.pth}
stages:
  - {name: one, method: simclr, data: [pool], start: model.tar}
  - {name: two, method: simclr, data: [pool], start: one}
evaluate: {starts: [student, scratch, teacher.masks, stage.one, timm, "package:a/b.pth", w/other.pth]}
compare: {all: {data: [pool], methods: {simclr: {method: simclr}}, starts: [scratch, w/other.pth], batch: 4}}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe in a folder, started from another one."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "recipes/r.yaml").write_text(TEXT, "utf-8")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("MINE", raising=False)
    return tmp_path / "recipes/r.yaml"


def paths(recipe: Recipe) -> dict[str, str]:
    return {name: entry.path for name, entry in recipe.data.items() if hasattr(entry, "path")}


def test_read_recipe_makes_paths_of_sets_absolute(file: Path) -> None:
    assert paths(read_recipe(file)) == {
        "pool": str(file.parent / "pool"),
        "there": "/data/there",
        "bucket": "s3://bucket/pool",
        "home": "~/pool",
        "mine": str(file.parent / "default/pool"),
    }


def test_read_recipe_makes_paths_of_weights_absolute(file: Path) -> None:
    recipe, here = read_recipe(file), file.parent
    weights = [getattr(teacher, "weights", None) for teacher in recipe.teachers.values()]
    assert weights == [str(here / "w/teacher.pth"), "timm", "package:a/b.pth"]
    assert recipe.student.weights == str(here.parent / "student.pth")
    assert [stage.start for stage in recipe.stages] == [str(here / "model.tar"), "one"]
    names = ["student", "scratch", "teacher.masks", "stage.one", "timm", "package:a/b.pth"]
    assert recipe.evaluate.starts == [*names, str(here / "w/other.pth")]
    assert recipe.compare["all"].starts == ["scratch", str(here / "w/other.pth")]


@pytest.mark.parametrize("name", ["recipes/r.yaml", "../recipes/r.yaml"])
def test_read_recipe_reads_the_same_from_any_folder(file: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_recipe(file)
    monkeypatch.chdir(file.parents[1] if name.startswith("recipes") else Path())
    assert read_recipe(Path(name)) == whole
    monkeypatch.chdir(file.parent)
    assert read_recipe(Path("r.yaml")) == whole


def test_read_recipe_starts_paths_of_overrides_in_the_current_folder(file: Path) -> None:
    changes = ["data.pool.path=near", "data.new={kind: folder, path: ../new}", "stages.two.start=./x.pth"]
    recipe = read_recipe(file, [*changes, "evaluate.starts=[student, y/z.pth]"])
    assert paths(recipe)["pool"] == os.path.abspath("near")
    assert paths(recipe)["new"] == os.path.abspath("../new")
    assert paths(recipe)["mine"] == str(file.parent / "default/pool"), "the file's own"
    assert [stage.start for stage in recipe.stages] == [str(file.parent / "model.tar"), os.path.abspath("x.pth")]
    assert recipe.evaluate.starts == ["student", os.path.abspath("y/z.pth")]


def test_read_recipe_starts_variables_in_the_current_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "sets")
    assert paths(read_recipe(file))["mine"] == os.path.abspath("sets/pool")
    monkeypatch.setenv("MINE", "/sets")
    recipe = read_recipe(file)
    assert paths(recipe)["mine"] == "/sets/pool"
    assert as_written(recipe)["data"]["mine"]["path"] == "${MINE:-default}/pool"


def test_as_written_reads_as_the_same_recipe_from_another_folder(file: Path, tmp_path: Path) -> None:
    """A run keeps its recipe in a folder of its own."""
    recipe = read_recipe(file)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(as_written(recipe)), "utf-8")
    assert read_recipe(tmp_path / "run.yaml").model_dump() == recipe.model_dump()


def test_parse_recipe_without_a_file_leaves_paths_as_they_are() -> None:
    assert paths(parse_recipe(TEXT, "text"))["pool"] == "photos/../pool"


@pytest.mark.parametrize(
    "section", ["data: 3", "data: {pool: 3}", "data: {pool: {kind: folder, path: 3}}", "stages: [3]"]
)
def test_read_recipe_leaves_wrong_values_to_the_message(tmp_path: Path, section: str) -> None:
    (tmp_path / "r.yaml").write_text(f"name: a\n{section}\nevaluate: {{starts: 3}}\ncompare: 3\n", "utf-8")
    with pytest.raises(Exception, match=r"r\.yaml"):
        read_recipe(tmp_path / "r.yaml")
