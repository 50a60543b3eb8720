"""The parts that are measured on a GPU, tiny, on the CPU: their programs work, and their tables come last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import must_table, stage_speed
from benchmarks.gpu import evidence, speed
from pipeline.errors import PROJECT
from pipeline.recipe.reader import read_recipe


def run_part(part: str, out: Path) -> str:
    """Run a part, tiny, by its script, as on a machine that has all packages; return what it prints."""
    environ = {**os.environ, "PYTHON": sys.executable, "GPU_PACK": str(out / "nowhere"), "OUT": str(out)}
    done = subprocess.run(
        ["bash", str(PROJECT / "benchmarks" / "gpu" / "run.sh"), part, "--tiny"],
        env={**environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def items_of(out: Path) -> list[str]:
    [file] = out.glob("gpu_*.jsonl")
    return [json.loads(line)["item"] for line in file.read_text("utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_data")
def test_run_measures_speed_against_its_limits(tmp_path: Path) -> None:
    printed = run_part("speed", tmp_path)
    assert items_of(tmp_path) == ["labelling", "student", "simclr"]
    table = printed[printed.index("share of the limit") :]
    for line in ("decode on all cores", "models alone", "timm's loops", "a plain loop", "lightly"):
        assert line in table


@pytest.mark.slow
@pytest.mark.usefixtures("shared_data")
def test_run_measures_evidence(tmp_path: Path) -> None:
    printed = run_part("evidence", tmp_path)
    assert items_of(tmp_path) == ["plan", *evidence.TINY_ROWS, "SuNCEt, seed 0"]
    assert "mean rank" in printed


@pytest.mark.slow
def test_run_tells_which_tests_are_correct(tmp_path: Path) -> None:
    assert "passed" in run_part("correctness", tmp_path)
    assert {name.partition("[")[2].partition("-")[0].rstrip("]") for name in items_of(tmp_path)} == {"cpu"}


@pytest.mark.parametrize("tiny", [False, True])
def test_speed_recipe_has_its_teachers(tiny: bool) -> None:
    recipe: Any = read_recipe(speed.RECIPE, speed.Scale(tiny).overrides)
    assert tuple(recipe.teachers) == speed.TEACHERS
    assert {teacher.image_size for teacher in recipe.teachers.values()} == {32 if tiny else 224}


def test_evidence_rows_are_those_of_the_table() -> None:
    rows = must_table.backbone_rows(evidence.START)
    assert set(evidence.ROWS) <= set(rows)
    assert set(evidence.TINY_ROWS) <= set(rows)


def test_speed_stage_is_a_part_of_stage_speed() -> None:
    part = stage_speed.Part("", "photos", device="cuda", steps=1, method="dino", **speed.LARGE_STAGE)
    assert (part.backbone, part.size, part.method) == ("resnet50", 224, "dino")
