"""A full disk and a clock that jumps: what a run reports, and that the next one makes the same artifacts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest

import must
from tests.flows.tiny import SAVES, THREADS, digests
from tests.run_fixtures import Resume

MUST = Path(sys.executable).with_name("must")
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=64m none {disk} || exit 99
cp -r {begun}/. {disk}
{command}
code=$?
rm -f {disk}/filling
cp -r {disk}/. {saved}
exit $code
"""
FILLING = """
import fnmatch, os
from pathlib import Path
from pipeline.storage import atomic

_temporary_path, _met = atomic.temporary_path, []

def _filling(path):
    if fnmatch.fnmatch(str(path), os.environ["FULL_AT"]):
        _met.append(path)
    if len(_met) == int(os.environ["FULL_AFTER"]):
        with open(Path(os.environ["DISK"], "filling"), "ab", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
    return _temporary_path(path)

atomic.temporary_path = _filling
"""
"""A sitecustomize that fills the disk just when a file is to be written."""
STATE = "artifacts/student/*/work/state.safetensors"


class Full(NamedTuple):
    """A disk that is full as soon as a file like `file` is written for the `number`th time.

    The step `missing` is to be made, and afterwards a file like `kept` exists.
    """

    missing: str
    file: str
    number: int
    kept: str
    options: list[str] = []  # noqa: RUF012 - of the command


SHARD = Full("label", "*/labels/gabor-*.parquet", 3, "labels/gabor-*/*.parquet")
MANIFEST = Full("student", "*/student/*/manifest.json", 1, STATE, SAVES)
FULL = [SHARD, Full("student", "*/student/*/work/state.safetensors", 3, STATE, SAVES)]
ALSO_FULL = [
    MANIFEST,
    Full("data.pool", "*/data.pool/*.tar", 3, "artifacts/data.pool/*/work/images/train/*.tar"),
    Full("student", "*/student/*/backbone.safetensors", 1, "artifacts/label/*/manifest.json"),
    Full("evaluate", "*/runs/*/report.html", 1, "artifacts/evaluate/*/manifest.json"),
    SHARD._replace(options=THREADS),
    MANIFEST._replace(options=[*THREADS, *SAVES]),
]


def small_disks() -> bool:
    """Return True if this system lets a test mount a file system."""
    tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0


@pytest.fixture
def full(request: pytest.FixtureRequest) -> Full:
    case: Full = request.param
    return case


@pytest.fixture
def begun(full: Full, up_to_label: Path, finished_root: Path) -> Path:
    """Return a root where everything is made but one step."""
    for step in ("label", "student", "evaluate"):
        shutil.copytree(finished_root / "artifacts" / step, up_to_label / "artifacts" / step)
    if full.missing != "label":
        shutil.copytree(finished_root / "labels", up_to_label / "labels")
    shutil.rmtree(up_to_label / "artifacts" / full.missing)
    return up_to_label


@pytest.mark.skipif(not shutil.which("unshare") or not small_disks(), reason="this system lets no test mount a disk")
@pytest.mark.parametrize(
    "full",
    [*FULL, *(pytest.param(case, marks=pytest.mark.slow) for case in ALSO_FULL)],
    indirect=True,
    ids=lambda case: f"{case.missing} {len(case.options)} {case.file}",
)
def test_full_disk_is_reported_and_finished_files_are_kept(
    full: Full, begun: Path, recipe: Path, tmp_path: Path, resume: Resume
) -> None:
    disk, saved = tmp_path / "disk", tmp_path / "saved"
    disk.mkdir()
    saved.mkdir()
    (tmp_path / "sitecustomize.py").write_text(FILLING, "utf-8")
    environ = {"PYTHONPATH": str(tmp_path), "DISK": str(disk), "FULL_AT": full.file, "FULL_AFTER": str(full.number)}
    command = f"{MUST} run {recipe} --root {disk} {' '.join(full.options)}"
    script = ON_A_SMALL_DISK.format(disk=disk, begun=begun, saved=saved, command=command)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], env=os.environ | environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    assert f"the disk that holds {disk} is full. Finished files are kept. Free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(saved.glob(full.kept))
    assert not list(saved.rglob("*.part"))
    resume(saved, full.missing)


def run_while_the_clock_jumps(recipe: Path, root: Path) -> None:
    """Run a recipe twice with a clock that jumps back by 25 years once the teacher is trained."""
    now = time.time
    time.time = lambda: now() + (-4e8 if list(root.glob("artifacts/teacher.masks/*/manifest.json")) else 4e8)
    must.run(recipe, root)
    assert must.run(recipe, root).ran == 0


def test_run_survives_a_clock_that_jumps(
    finished_root: Path, recipe: Path, root: Path, spawn: Callable[..., BaseProcess]
) -> None:
    process = spawn(run_while_the_clock_jumps, recipe, root)
    process.join()
    assert process.exitcode == 0
    assert digests(root) == digests(finished_root)
