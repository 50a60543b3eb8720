"""Damaged files of every format: each image is read, or refused by an error of ours, in little time and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.recipe.plugins import modules
from tests.pipeline.sources import damage

MADE_UP = {"photographs", "scenes"}
"""Kinds that read no files of a user."""


def test_damage_knows_every_kind_that_reads_files() -> None:
    assert set(damage.FILES) | MADE_UP == set(modules("pipeline.sources"))


def skip_without_extra(kind: str) -> None:
    if kind == "video":
        pytest.importorskip("av")


@pytest.mark.parametrize("kind", damage.FILES)
def test_sources_read_the_set_that_damage_starts_from(kind: str, tmp_path: Path) -> None:
    skip_without_extra(kind)
    files = damage.FILES[kind][0]()
    damage.write(files, tmp_path)
    others = (".json", ".csv", ".parquet", ".tar", ".txt", ".xml", ".yaml", ".mp4")
    labels = ("masks/", "depth/", "normals/")
    images = sum(not name.startswith(labels) and not name.endswith(others) for name in files) or 3
    assert damage.read_set(kind, tmp_path) == images


@pytest.mark.parametrize("kind", damage.FILES)
@pytest.mark.parametrize("last", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_sources_read_or_refuse_damaged_files(kind: str, last: int) -> None:
    skip_without_extra(kind)
    command = [sys.executable, "-m", "tests.pipeline.sources.damage", kind, "0", str(last)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
