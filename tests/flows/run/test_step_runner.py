"""Subprocess restarts killed steps; run_concurrently keeps the order of the plan."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.plan.plan import Planned
from flows.plan.resolve import resolve
from flows.plan.run_plan import Plan
from flows.run import step_runner
from flows.run.devices import Devices
from flows.run.run import Run
from flows.run.step_runner import Subprocess, run_concurrently
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import WORK, Artifact, Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from tests.flows.tiny import RECIPE
from tests.steps import make_step


def work(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Kill this process in the second call. Returns which calls' files the last one found in `work`."""
    attempts = Path(config["attempts"])
    number = len(attempts.read_text("utf-8")) if attempts.exists() else 0
    attempts.write_text("x" * (number + 1), "utf-8")
    met = sorted(path.name for path in (out / WORK).glob("*"))
    (out / WORK).mkdir(exist_ok=True)
    (out / WORK / str(number)).touch()
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"met": met}


@pytest.mark.parametrize(("keys", "met"), [(None, ["1"]), ((), []), (("attempts",), [])])
def test_subprocess_resumes_a_forced_step_that_was_killed_unless_it_reuses_earlier_work(
    keys: tuple[str, ...] | None, met: list[str], tmp_path: Path
) -> None:
    resolved = resolve(parse_recipe(RECIPE, "tiny"))
    recipe, workspace = resolved.recipe, Workspace(Root.of(tmp_path / "root"))
    runtime = Runtime(workspace.root, "cpu", "32", 1)
    step = make_step("killed", f"{__name__}:work", {"attempts": str(tmp_path / "attempts")}, incremental_keys=keys)
    workspace.make(step, Inputs({}, runtime))
    subprocess = Subprocess(recipe.runtime, resolved.models(), set(), runtime)
    run = Run(
        recipe,
        Plan(resolved, workspace, [Planned(step, None, "to be made again")], {step.name}),
        runtime,
        subprocess.get_or_make,
    )
    made, is_new = subprocess.get_or_make(run, step, Inputs({}, runtime, force=True))
    assert is_new
    assert made.counts["met"] == met


def loaded(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Return which slow libraries are loaded in this process."""
    return {"loaded": sorted({"torch", "timm", "prefect"} & set(sys.modules))}


def slow_preflight(settings: Any, models: Any, trained: Any, runtime: Runtime) -> Devices:
    """Wait until a file says what to do."""
    file = runtime.root.local_path("preflight")
    while not file.exists():
        time.sleep(0.02)
    if file.read_text("utf-8"):
        raise ConfigError(file.read_text("utf-8"))
    return Devices([], settings)


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Subprocess, Run]:
    """Return a runner whose preflight waits, and a run."""
    monkeypatch.setattr(step_runner, "preflight", slow_preflight)
    resolved = resolve(parse_recipe(RECIPE, "tiny"))
    workspace = Workspace(Root.of(tmp_path / "root"))
    runtime = Runtime(workspace.root, "cpu", "32", 1)
    subprocess = Subprocess(resolved.recipe.runtime, {}, set(), runtime)
    plan = Plan(resolved, workspace, [], set())
    return subprocess, Run(resolved.recipe, plan, runtime, subprocess.get_or_make)


def end_preflight(run: Run, error: str = "") -> None:
    path = run.workspace.root.local_path("preflight")
    path.with_suffix(".part").write_text(error, "utf-8")
    path.with_suffix(".part").rename(path)


def test_subprocess_runs_early_steps_without_torch_while_the_preflight_runs(waiting: tuple[Subprocess, Run]) -> None:
    subprocess, run = waiting
    early = make_step("data.early", f"{__name__}:loaded", {}, early=True)
    made, _ = subprocess.get_or_make(run, early, Inputs({}, run.runtime))
    assert made.counts["loaded"] == []
    assert subprocess.refusal is None
    end_preflight(run)
    later = make_step("later", f"{__name__}:loaded", {})
    made, _ = subprocess.get_or_make(run, later, Inputs({}, run.runtime))
    assert made.counts["loaded"] == ["timm", "torch"]


def test_subprocess_stops_the_run_when_the_preflight_refuses(waiting: tuple[Subprocess, Run]) -> None:
    subprocess, run = waiting
    end_preflight(run, "student: no such weights.")
    with pytest.raises(ConfigError, match="no such weights"):
        subprocess.get_or_make(run, make_step("later", f"{__name__}:loaded", {}), Inputs({}, run.runtime))
    assert run.runtime.stop.wait(60)
    assert isinstance(subprocess.refusal, ConfigError)


class TwoAtOnce:
    """Admits two steps at once."""

    def admit(self, planned: Planned, artifacts: Mapping[str, Artifact], running: int) -> bool:
        return running < 2

    def dismiss(self, name: str) -> None:
        """Hear that a step has ended."""

    def wait_until_checked(self) -> None:
        pytest.fail("steps are admitted")


def test_run_concurrently_returns_artifacts_in_the_order_of_the_plan(tmp_path: Path) -> None:
    """However long each took."""
    resolved, workspace = resolve(parse_recipe(RECIPE, "tiny")), Workspace(Root.of(tmp_path / "root"))
    recipe = resolved.recipe
    steps = [make_step(name, f"{__name__}:work", {}) for name in ("slow", "quick", "last")]
    plan = Plan(resolved, workspace, [Planned(step, None, "never made here") for step in steps], set())
    run = Run(recipe, plan, Runtime(workspace.root, "cpu", "32", 1), lambda *_: pytest.fail("nothing is made"))
    ended, quick_ended = list[str](), threading.Event()

    def execute(run: Run, step: Step, inputs: Mapping[str, Artifact]) -> Artifact:
        if step.name == "slow":
            quick_ended.wait()
        ended.append(step.name)
        if step.name == "quick":
            quick_ended.set()
        return Artifact(workspace.root, step.name, {})

    assert list(run_concurrently(run, execute, TwoAtOnce())) == ["slow", "quick", "last"]
    assert ended[0] == "quick"
