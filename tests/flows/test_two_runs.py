"""Two runs on one root at the same time."""

from __future__ import annotations

import collections
import json
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import must
from tests.flows.tiny import SAVES, STEPS, THREADS, digests, logged_steps
from tests.waiting import wait_until

Start = Callable[..., BaseProcess]


def count_events(root: Path) -> collections.Counter[tuple[str, str]]:
    """Return how often each event happened to each step, in all runs of a root."""
    lines = [line for file in root.glob("runs/*/events.jsonl") for line in file.read_text("utf-8").splitlines()]
    events = [json.loads(line) for line in lines]
    return collections.Counter((event["event"], event["step"]) for event in events if "step" in event)


@pytest.mark.parametrize("runner", [[], pytest.param(THREADS, marks=pytest.mark.slow)])
def test_two_runs_make_every_artifact_once(runner: list[str], root: Path, finished_root: Path, start: Start) -> None:
    runs = [start(root, *runner), start(root, *runner)]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    assert digests(root) == digests(finished_root)
    counts = count_events(root)
    assert {step: counts["made", step] for step in STEPS} == dict.fromkeys(STEPS, 1)
    assert {step: counts["reused", step] for step in STEPS} == dict.fromkeys(STEPS, 1)
    assert not list((root / "claims").rglob("*.json"))


def labelled_now(manifest: Path) -> int:
    """Return how many images a label step labelled."""
    return int(json.loads(manifest.read_text("utf-8"))["counts"]["labelled_now"])


def test_two_runs_label_a_shared_shard_once(up_to_label: Path, finished_root: Path, start: Start) -> None:
    root = up_to_label
    both = [start(root, "--to", "label"), start(root, "--to", "label", "-o", "pool=[pool]")]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    once, *_ = (labelled_now(path) for path in finished_root.glob("artifacts/label/*/manifest.json"))
    assert sum(labelled_now(path) for path in root.glob("artifacts/label/*/manifest.json")) == once
    assert not list(root.glob("claims/labels/*/*"))


def test_run_takes_over_from_one_that_is_killed(root: Path, finished_root: Path, recipe: Path, start: Start) -> None:
    first = start(root, *SAVES, "--to", "teacher.masks")
    wait_until(lambda: logged_steps(root, "teacher.masks") >= 3, first)
    os.kill(first.pid or 0, signal.SIGSTOP)  # it lives, and does nothing
    second = start(root, "--to", "teacher.masks")
    wait_until(lambda: count_events(root)["started", "teacher.masks"] == 2, second)
    assert second.is_alive()
    first.kill()
    first.join()
    second.join()
    assert second.exitcode == 0
    assert digests(root)["teacher.masks"] == digests(finished_root)["teacher.masks"]
    (manifest,) = root.glob("artifacts/teacher.masks/*/manifest.json")
    assert "earlier_seconds" in json.loads(manifest.read_text("utf-8"))["counts"], "it began again"


def test_run_that_waits_names_the_holder_of_the_lock(root: Path, recipe: Path, start: Start) -> None:
    first = start(root)
    wait_until(lambda: logged_steps(root, "teacher.masks") >= 3, first)
    os.kill(first.pid or 0, signal.SIGSTOP)
    lines: list[str] = []

    class Enough(Exception):
        pass

    def progress(step: str, done: float, line: str) -> None:
        lines.append(f"{step}: {line}")
        if line.startswith("waits"):
            raise Enough

    with pytest.raises(Enough):
        must.run(recipe, root, progress=progress)
    assert f"waits for process {first.pid} on {os.uname().nodename}" in lines[-1]
    os.kill(first.pid or 0, signal.SIGCONT)
