"""A recipe that runs in seconds, and helpers to look at its runs."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPE = """
name: tiny
runtime: {runner: inline, device: cpu, precision: "32", workers: 1, checkpoint_s: 1000}
data:
  world: {kind: scenes, count: 12, test: 2, seed: 1, size: 48, tasks: [segmentation]}
  pool: {kind: scenes, count: 36, seed: 2, size: 48}
shard_images: 4
teachers:
  masks: {kind: supervised, task: segmentation, data: world, backbone: test_resnet, image_size: 32, width: 16,
    proposals: 8, steps: 60, batch: 4, require: none}
  gabor: {kind: analytic, image_size: 32, wavelengths: [4.0]}
pool: [pool, world]
labelling: {batch: 2}
student: {backbone: test_resnet, image_size: 32, width: 16, proposals: 8, steps: 60, batch: 4,
  loss_weights: {gabor: 1}}
"""
TRAIN_STEPS = 60
"""Of the teacher and of the student: with fewer, they say the same of all images."""
STEPS = ["data.world", "data.pool", "pool", "teacher.masks", "teacher.gabor", "label", "student", "evaluate"]
THREADS = ["-o", "runtime.runner=threads"]
SAVES = ["-o", "runtime.checkpoint_s=0"]
"""Saves the state of training after every step."""

Digests = dict[str, str]


def digests(root: Path) -> Digests:
    """Return the digest of every step's artifact."""
    manifests = [json.loads(path.read_text("utf-8")) for path in root.glob("artifacts/*/*/manifest.json")]
    found = {manifest["step"]: manifest["digest"] for manifest in manifests}
    assert len(found) == len(manifests), "a step was made twice over"
    return found


def events(root: Path) -> list[dict[str, Any]]:
    """Return the events of the newest run of a root."""
    newest = max((root / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    return [json.loads(line) for line in (newest / "events.jsonl").read_text("utf-8").splitlines()]


def logged_steps(root: Path, step: str) -> int:
    """Return the number of training steps in a step's log."""
    logs = list(root.glob(f"artifacts/{step}/*/log/train.jsonl"))
    return sum(line.endswith("}") for line in logs[0].read_text("utf-8").splitlines()) if logs else 0


def query_prefect(root: Path, query: str) -> list[tuple[Any, ...]]:
    """Return rows of the database of Prefect's server."""
    with contextlib.closing(sqlite3.connect(root / "prefect" / "prefect.db")) as database:
        return database.execute(query).fetchall()


def processes_of(home: Path) -> list[int]:
    """Return the pids of what `must up` with this MUST_HOME started: server, worker, runs and their steps."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"MUST_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def environ_without_prefect() -> dict[str, str]:
    """Return the environment of a user who has configured nothing of Prefect."""
    unset = ("PREFECT", "DO_NOT_TRACK", "CI")
    return {name: value for name, value in os.environ.items() if not name.startswith(unset)}


def output_without_heavy_imports(*arguments: object) -> str:
    """Run the `must` command in a process, check that it imports neither torch nor Prefect, and return its output."""
    program = (
        "import sys, cli.main\n"
        "try:\n"
        f"    cli.main.main({[str(argument) for argument in arguments]!r})\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'torchvision', 'timm', 'prefect'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
