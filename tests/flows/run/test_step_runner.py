"""Subprocess restarts killed steps; run_concurrently keeps the order of the plan."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.plan.plan import Planned
from flows.plan.resolve import resolve
from flows.plan.run_plan import Plan
from flows.run.run import Run
from flows.run.step_runner import Subprocess, run_concurrently
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


@pytest.mark.parametrize(("keys", "met"), [((), ["1"]), (("attempts",), [])])
def test_subprocess_resumes_a_forced_step_that_was_killed_unless_it_reuses_earlier_work(
    keys: tuple[str, ...], met: list[str], tmp_path: Path
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

    assert list(run_concurrently(run, execute, 2)) == ["slow", "quick", "last"]
    assert ended[0] == "quick"
