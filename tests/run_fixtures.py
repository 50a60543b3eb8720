"""Fixtures of runs: a small recipe, a finished run of it to compare with, and runs in processes to stop and kill."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import must
from flows.plan.selection import Selection
from flows.run.run import Outcome
from flows.server.embedded import Server
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from tests.flows.tiny import RECIPE, digests
from tests.forked import run_must
from tests.made_once import make_once

Resume = Callable[..., Outcome]


@pytest.fixture(scope="session", autouse=True)
def must_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Set a home for `must up`, so that services of the developer are neither used nor ended."""
    home = tmp_path_factory.mktemp("must-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUST_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished_root(recipe: Path, spawner: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the root of a run that nothing disturbed."""
    from tasks import training  # noqa: F401, PLC0415 - torch, only where it is needed

    gc.collect()
    gc.freeze()  # else every collection walks the libraries' objects
    made = make_once(tmp_path_factory, "finished", lambda root: must.run(recipe, root))
    yield shutil.copytree(made, tmp_path_factory.mktemp("finished") / "root")
    gc.unfreeze()


@pytest.fixture
def root(finished_root: Path, tmp_path: Path) -> Path:
    """Return an empty root with the autotuned settings of the finished run."""
    shutil.copytree(finished_root / "machine", tmp_path / "root" / "machine")
    return tmp_path / "root"


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new database of Prefect's server, made once for all tests: its migrations take longer than most runs."""

    def start_and_stop(home: Path) -> None:
        server = Server(home)
        try:
            server.wait(Runtime(Root.of(home)))
        finally:
            server.stop()
        with contextlib.closing(sqlite3.connect(home / "prefect.db")) as database:
            database.execute("pragma wal_checkpoint(truncate)")  # the one file then holds everything

    return make_once(tmp_path_factory, "prefect", start_and_stop) / "prefect.db"


def add_database(home: Path, database: Path) -> None:
    """Give a root, or the home of `must up`, a copy of a database of Prefect's server."""
    (home / "prefect").mkdir(parents=True)
    shutil.copyfile(database, home / "prefect" / "prefect.db")


@pytest.fixture
def up_to_label(finished_root: Path, root: Path) -> Path:
    """Return the same root with everything made that comes before the labels."""
    for step in ("data.world", "data.pool", "pool", "teacher.masks", "teacher.gabor"):
        shutil.copytree(finished_root / "artifacts" / step, root / "artifacts" / step)
    return root


@pytest.fixture
def resume(finished_root: Path, recipe: Path) -> Resume:
    """Return a function that goes on with the run in a root: (root, last step), by default to its end.

    It checks that all artifacts are those of the finished run.
    """

    def finish(root: Path, last: str | None = None) -> Outcome:
        outcome = must.run(recipe, root, steps=Selection(last))
        made, expected = digests(root), digests(finished_root)
        assert made == {step: digest for step, digest in expected.items() if last is None or step in made}
        assert made.keys() >= outcome.artifacts.keys()
        return outcome

    return finish


@pytest.fixture
def rng() -> random.Random:
    """Return a generator with a new seed, which is printed if the test fails."""
    seed = int.from_bytes(os.urandom(4))
    print(f"random.Random({seed})")
    return random.Random(seed)


@pytest.fixture
def spawn(spawner: Any) -> Iterator[Callable[..., BaseProcess]]:
    """Return a function that calls a function in a process: (function, *arguments) -> process, ended after the test."""
    started: list[BaseProcess] = []

    def process(function: Callable[..., object], *arguments: object) -> BaseProcess:
        started.append(spawner.Process(target=function, args=arguments))
        started[-1].start()
        return started[-1]

    yield process
    for each in started:
        if each.is_alive():
            each.kill()
        each.join()


@pytest.fixture
def start(recipe: Path, spawn: Callable[..., BaseProcess]) -> Callable[..., BaseProcess]:
    """Return a function that starts `must run` in a process: (root, *arguments) -> process.

    Its environment is that of the moment when `spawner` began.
    """
    return lambda root, *more: spawn(run_must, {}, ["run", str(recipe), "--root", str(root), *more])
