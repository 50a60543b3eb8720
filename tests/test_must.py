"""The `must` command as users run it: output, exit codes, and what it does not load."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import main
from pipeline.errors import PROJECT
from tests.flows.tiny import output_without_heavy_imports

RECIPE = """
name: tiny
runtime: {runner: inline, device: cpu, precision: "32", workers: 1}
data:
  world: {kind: scenes, count: 4, test: 2, seed: 1, size: 32, tasks: [segmentation]}
teachers:
  masks: {kind: supervised, task: segmentation, data: world, backbone: test_resnet, image_size: 32, width: 16,
    proposals: 8, steps: 1, batch: 2, require: none}
pool: [world]
student: {backbone: test_resnet, image_size: 32, width: 16, proposals: 8, steps: 1, batch: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_must_help_loads_nothing_heavy() -> None:
    message = output_without_heavy_imports("--help")
    assert "run" in message
    assert "plan" in message


def test_must_plan_loads_nothing_heavy_and_says_why(recipe: Path, tmp_path: Path) -> None:
    message = output_without_heavy_imports("plan", recipe, "--root", tmp_path / "root")
    lines = {line.split()[0]: line for line in message.splitlines()}
    assert {"data.world", "teacher.masks", "pool", "label", "student", "evaluate"} <= set(lines)
    assert "never made here" in lines["data.world"]
    assert "waits for" in lines["student"]
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "must: nowhere.yaml: can't be read (No such file or directory).\n"),
        (["-o", "student.epoch=3"], "student.epoch: unknown key (value 3). Did you mean 'epochs'?"),
        (["-o", "student"], "must: -o 'student': write key.sub=value, for example student.epochs=3."),
        (["-o", "runtime.runner=magic"], "runtime.runner: "),
    ],
)
def test_must_run_exits_with_2_and_one_line_for_a_wrong_recipe(
    arguments: list[str], message: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments if arguments[0].endswith(".yaml") else [str(recipe), *arguments]
    with pytest.raises(SystemExit) as ended:
        main(["run", *given, "--root", str(tmp_path / "root")])
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert message in shown.err
    assert shown.err.startswith("must: ")
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert not (tmp_path / "root").exists()


def test_must_run_exits_with_3_for_bad_data(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "broken.jpg").write_bytes(b"no picture")
    more = ["-o", f"data.more={{kind: folder, path: {tmp_path / 'set'}}}", "-o", "pool=[world, more]"]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe), *more, "--root", str(tmp_path / "root")])
    assert ended.value.code == 3
    assert "must: data.more: not one usable image. broken.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("forgets", ["", "import os; del os.sched_getaffinity"], ids=["linux", "macos"])
def test_make_test_chooses_parallel_processes_also_without_affinities(forgets: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(forgets, "utf-8")
    command = ["make", "-n", "test", f"PYTHON={sys.executable}"]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=PROJECT, env=environ, capture_output=True, text=True, check=True)
    assert re.search(r"pytest -q -n [2-4] ", done.stdout), done.stderr
