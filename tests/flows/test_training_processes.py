"""Networks trained by several processes together, in a run of the command and under torchrun."""

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
from tests.flows.tiny import THREADS, events, logged, within

Start = Callable[..., BaseProcess]
TWO = [*THREADS, "-o", "runtime.training_processes=2"]


def losses(root: Path, step: str) -> list[float]:
    """The loss of every step of a training."""
    (log,) = root.glob(f"artifacts/{step}/*/log/train.jsonl")
    return [json.loads(line)["loss"] for line in log.read_text("utf-8").splitlines()]


def test_two_processes_train_each_network_of_a_run(recipe: Path, root: Path, whole: Path, start: Start) -> None:
    process = start(root, *TWO)
    process.join()
    assert process.exitcode == 0
    outcome = must.run(recipe, root)
    assert outcome.ran == 0
    assert outcome.artifacts["student"].counts["processes"] == 2
    assert len(losses(root, "student")) == 60
    first, alone = losses(root, "teacher.masks"), losses(whole, "teacher.masks")
    assert first[0] == pytest.approx(alone[0], rel=0.05)  # batch norms see half of the batch each


@pytest.mark.slow
def test_under_torchrun_one_step_is_trained(recipe: Path, root: Path) -> None:
    must.run(recipe, root, steps=Selection("data.world"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cli"]
    command += ["run", str(recipe), "--root", str(root), "--only", "teacher.masks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (manifest,) = root.glob("artifacts/teacher.masks/*/manifest.json")
    assert json.loads(manifest.read_text("utf-8"))["counts"]["processes"] == 2
    assert len(losses(root, "teacher.masks")) == 60


def test_torchrun_is_for_one_network(recipe: Path, root: Path) -> None:
    environ = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "cli", "run", str(recipe), "--root", str(root)]
    done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "torchrun started 2 processes, which can train one network: run it with --only STEP" in done.stderr


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_go_on_by_themselves(root: Path, start: Start) -> None:
    process = start(root, *TWO, "--to", "teacher.masks")
    within(lambda: logged(root, "teacher.masks") >= 3, process)
    (claim,) = root.glob("claims/teacher.masks/*/*.json")
    os.kill(int(json.loads(claim.read_text("utf-8"))["holder"]["number"]), signal.SIGKILL)
    process.join()
    assert process.exitcode == 0
    assert [event["step"] for event in events(root) if event["event"] == "killed"] == ["teacher.masks"]
    assert len(losses(root, "teacher.masks")) == 60
