"""A full disk and a clock that jumps: what a run says, and that the next one comes to the same end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.run import Outcome
from tests.flows.tiny import digests

GoesOn = Callable[[Path], Outcome]
MUST = Path(sys.executable).with_name("must")
ON_A_SMALL_DISK = """
mount -t tmpfs -o size={size} none {disk} || exit 99
cp -r {machine} {disk}/machine
{must} run {recipe} --root {disk}
code=$?
cp -r {disk}/. {saved}
exit $code
"""
JUMP = """
import os, time
_began, _time = time.monotonic(), time.time
def _jumping():
    return _time() + (-4e8 if time.monotonic() - _began > float(os.environ["JUMPS_AFTER"]) else 4e8)
time.time = _jumping
"""
"""A sitecustomize whose clock falls back by 25 years in the middle of a run."""


def small_disks() -> bool:
    """Whether this system lets a test mount one."""
    tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0


@pytest.mark.skipif(not shutil.which("unshare") or not small_disks(), reason="this system lets no test mount a disk")
@pytest.mark.parametrize(
    "share", [pytest.param(0.1, marks=pytest.mark.slow), 0.5, pytest.param(0.9, marks=pytest.mark.slow)]
)
def test_a_full_disk_is_told_and_what_is_whole_is_kept(
    share: float, whole: Path, recipe: Path, tmp_path: Path, goes_on: GoesOn
) -> None:
    """`share` of what the artifacts need: what does not fit is now a shard, now a state or a manifest."""
    files = [path for folder in ("artifacts", "labels", "machine") for path in (whole / folder).rglob("*")]
    needed = sum(-(-path.stat().st_size // 4096) * 4096 for path in files)
    (tmp_path / "disk").mkdir()
    (tmp_path / "saved").mkdir()
    script = ON_A_SMALL_DISK.format(
        size=int(needed * share),
        disk=tmp_path / "disk",
        machine=whole / "machine",
        must=MUST,
        recipe=recipe,
        saved=tmp_path / "saved",
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert f"the disk that holds {tmp_path / 'disk'} is full. What is whole is kept: free some space" in done.stderr
    assert "Traceback" not in done.stderr
    goes_on(tmp_path / "saved")


def test_a_clock_that_jumps_changes_nothing(whole: Path, recipe: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMP, encoding="utf-8")
    environ = os.environ | {"PYTHONPATH": str(tmp_path), "JUMPS_AFTER": "6"}
    command = [str(MUST), "run", str(recipe), "--root", str(root)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert digests(root) == digests(whole)
    again = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert again.stdout.startswith("Nothing to do")
