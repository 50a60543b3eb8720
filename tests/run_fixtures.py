"""A whole run in seconds, once undisturbed to compare with, and processes to disturb others in."""

from __future__ import annotations

import gc
import os
import random
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import must
from cli.main import main
from flows.run.run import Outcome
from tests.flows.tiny import RECIPE, digests


@pytest.fixture(scope="session", autouse=True)
def must_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where `must up` keeps what it starts: nothing of the developer's is used or ended here."""
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
def whole(recipe: Path, spawner: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of a run that nothing disturbed."""
    from tasks import training  # noqa: F401, PLC0415 - torch, only where it is needed

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


@pytest.fixture
def spawn(spawner: Any) -> Iterator[Callable[..., BaseProcess]]:
    """Starts a process that calls a function, (function, *arguments) -> the process; none is left after the test."""
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
    """Starts the `must` command in a process: (root, more arguments) -> the process."""
    return lambda root, *more: spawn(main, ["run", str(recipe), "--root", str(root), *more])
