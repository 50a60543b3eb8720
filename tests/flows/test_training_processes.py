"""Networks trained by several processes together: runtime.training_processes, and torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import must
from flows.plan.selection import Selection
from tests.flows.tiny import SAVES, THREADS, TRAIN_STEPS, events, logged_steps
from tests.run_fixtures import add_database
from tests.waiting import wait_until

Start = Callable[..., BaseProcess]
TWO = [*THREADS, "-o", "runtime.training_processes=2"]


def losses(root: Path, step: str) -> list[float]:
    """Return the loss of every training step."""
    (log,) = root.glob(f"artifacts/{step}/*/log/train.jsonl")
    return [json.loads(line)["loss"] for line in log.read_text("utf-8").splitlines()]


def test_training_processes_train_each_network_together(
    recipe: Path, root: Path, prefect_database: Path, finished_root: Path, start: Start
) -> None:
    add_database(root, prefect_database)
    process = start(root, *TWO)
    process.join()
    assert process.exitcode == 0
    outcome = must.run(recipe, root)
    assert outcome.ran == 0
    assert outcome.artifacts["student"].counts["processes"] == 2
    assert len(losses(root, "student")) == TRAIN_STEPS
    first, alone = losses(root, "teacher.masks"), losses(finished_root, "teacher.masks")
    assert first[0] == pytest.approx(alone[0], rel=0.05)  # batch norms see half of the batch each


@pytest.mark.slow
def test_torchrun_trains_one_step(recipe: Path, root: Path) -> None:
    must.run(recipe, root, steps=Selection("data.world"))
    must.run(recipe, root, steps=Selection("teacher.gabor"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cli"]
    command += ["run", str(recipe), "--root", str(root), "--to", "teachers"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (manifest,) = root.glob("artifacts/teacher.masks/*/manifest.json")
    assert json.loads(manifest.read_text("utf-8"))["counts"]["processes"] == 2
    assert len(losses(root, "teacher.masks")) == TRAIN_STEPS


def test_step_for_torchrun_refuses_a_run_of_several_steps(recipe: Path, root: Path) -> None:
    environ = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "cli", "run", str(recipe), "--root", str(root)]
    done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "torchrun started 2 processes, which can train one network: run it with --only STEP" in done.stderr


@pytest.mark.slow
def test_training_processes_resume_when_one_is_killed(root: Path, start: Start) -> None:
    process = start(root, *TWO, *SAVES, "--to", "teacher.masks")
    wait_until(lambda: logged_steps(root, "teacher.masks") >= 3, process)
    (lease,) = root.glob("claims/teacher.masks/*/*.json")
    os.kill(int(json.loads(lease.read_text("utf-8"))["holder"]["number"]), signal.SIGKILL)
    process.join()
    assert process.exitcode == 0
    assert [event["step"] for event in events(root) if event["event"] == "killed"] == ["teacher.masks"]
    assert len(losses(root, "teacher.masks")) == TRAIN_STEPS
