"""A whole run in seconds, once undisturbed to compare with, and processes to disturb others in."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import must
from flows.run import Outcome

RECIPE = """
name: tiny
runtime: {runner: inline, device: cpu, precision: "32", workers: 1}
data:
  world: {kind: scenes, count: 12, test: 2, seed: 1, size: 48, tasks: [segmentation]}
  pool: {kind: scenes, count: 36, seed: 2, size: 48}
shard_images: 4
teachers:
  masks: {kind: supervised, task: segmentation, data: world, backbone: test_resnet, image_size: 32, width: 16,
    proposals: 8, steps: 60, batch: 4, checkpoint_s: 0}
  gabor: {kind: analytic, image_size: 32, wavelengths: [4.0]}
pool: [pool, world]
labelling: {batch: 2}
student: {backbone: test_resnet, image_size: 32, width: 16, proposals: 8, steps: 60, batch: 4, checkpoint_s: 0,
  loss_weights: {gabor: 1}}
"""
STEPS = ["data.world", "data.pool", "teacher.masks", "teacher.gabor", "pool", "label", "student", "evaluate"]
THREADS = ["-o", "runtime.runner=threads"]
SOON_S = 120.0
"""What a process may take to come to a point in a run, on a machine that does other things as well."""

Digests = dict[str, str]


def digests(root: Path) -> Digests:
    """The digest of every step's artifact."""
    manifests = [json.loads(path.read_text("utf-8")) for path in root.glob("artifacts/*/*/manifest.json")]
    found = {manifest["step"]: manifest["digest"] for manifest in manifests}
    assert len(found) == len(manifests), "a step was made twice over"
    return found


def events(root: Path) -> list[dict[str, Any]]:
    """What happened in the newest run of a root."""
    newest = max((root / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    return [json.loads(line) for line in (newest / "events.jsonl").read_text("utf-8").splitlines()]


def logged(root: Path, step: str) -> int:
    """Training steps that are in a step's log."""
    logs = list(root.glob(f"artifacts/{step}/*/log/train.jsonl"))
    return sum(line.endswith("}") for line in logs[0].read_text("utf-8").splitlines()) if logs else 0


def prefect_says(root: Path, query: str) -> list[tuple[Any, ...]]:
    """Rows of the database that the embedded server left behind."""
    with contextlib.closing(sqlite3.connect(root / "prefect" / "prefect.db")) as database:
        return database.execute(query).fetchall()


def within(condition: Callable[[], bool], process: BaseProcess) -> None:
    """Wait until the condition holds; fail if the process ended before, or time is up."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert process.is_alive(), f"ended with {process.exitcode} before it came to the point"
        assert time.monotonic() < deadline, "never came to the point"
        time.sleep(0.002)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of a run that nothing disturbed."""
    from tasks import learning  # noqa: F401, PLC0415 - torch, only where it is needed

    gc.collect()
    gc.freeze()  # the libraries' objects: or every collection walks them
    root = tmp_path_factory.mktemp("whole")
    must.run(recipe, root)
    yield root
    gc.unfreeze()


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A root where nothing is made yet, on a machine that makes the same choices as the undisturbed run."""
    shutil.copytree(whole / "machine", tmp_path / "root" / "machine")
    return tmp_path / "root"


@pytest.fixture
def up_to_label(whole: Path, root: Path) -> Path:
    """The same, with everything made that comes before the labels."""
    for step in ("data.world", "data.pool", "teacher.masks", "teacher.gabor", "pool"):
        shutil.copytree(whole / "artifacts" / step, root / "artifacts" / step)
    return root


@pytest.fixture
def goes_on(whole: Path, recipe: Path) -> Callable[[Path], Outcome]:
    """Runs what is left to do in a root and checks that it comes to the end of the undisturbed run."""

    def finish(root: Path) -> Outcome:
        outcome = must.run(recipe, root)
        assert digests(root) == digests(whole)
        return outcome

    return finish


@pytest.fixture
def dice() -> random.Random:
    """Another moment in every test run; a failure shows the seed."""
    seed = int.from_bytes(os.urandom(4))
    print(f"random.Random({seed})")
    return random.Random(seed)


@pytest.fixture(scope="session", autouse=True)
def spawner() -> Iterator[Any]:
    """Makes processes from one that has torch loaded: each starts at once, and none shares a thread with the tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["must", "flows.run", "student.train", "evaluation.evaluate", "evaluation.report"])
    first = context.Process(target=os.getpid)  # the loading begins now, beside the first tests
    first.start()
    yield context
    first.join()


@pytest.fixture
def start(recipe: Path, spawner: Any) -> Iterator[Callable[..., BaseProcess]]:
    """Starts the `must` command in a process: (root, more arguments) -> the process."""
    started: list[BaseProcess] = []

    def process(root: Path, *more: str) -> BaseProcess:
        arguments = ["run", str(recipe), "--root", str(root), *more]
        started.append(spawner.Process(target=must.main, args=(arguments,)))
        started[-1].start()
        return started[-1]

    yield process
    for each in started:
        if each.is_alive():
            each.kill()
        each.join()
