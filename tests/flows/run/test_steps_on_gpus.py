"""Steps on a machine with several GPUs, which are pretended: the processes of a step hear of theirs by a variable."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.plan.evaluation_steps import FINETUNE, PROBE
from flows.plan.plan import Planned
from flows.plan.resolve import resolve
from flows.plan.run_plan import Plan
from flows.run import step_runner
from flows.run.devices import VISIBLE_GPUS, Devices
from flows.run.run import Run
from flows.run.step_runner import Subprocess, run_concurrently
from pipeline.recipe.reader import parse_recipe
from pipeline.recipe.runtime import RuntimeConfig
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from tests.flows.tiny import RECIPE
from tests.steps import make_step

POLL_S = 0.05
EVALUATIONS = ["finetune.scratch.pets", "finetune.student.pets", "probe.scratch.pets", "probe.student.pets"]


def look(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Wait until steps of these names are at work, and return what this process was given."""
    inputs.runtime.root.local_path(config["name"]).touch()
    while not all(inputs.runtime.root.local_path(name).exists() for name in config["beside"]):
        inputs.runtime.check_stop(config["name"])
        time.sleep(POLL_S)
    given = {"gpus": os.environ.get(VISIBLE_GPUS), "processes": int(os.environ.get("WORLD_SIZE", "1"))}
    return given | {"threads": inputs.runtime.threads}


def looking(name: str, beside: list[str], inputs: tuple[str, ...] = (), **kind: Any) -> Step:
    config = {"name": name, "beside": beside, "fit": {"batch": 2}}
    return make_step(name, f"{__name__}:look", config, inputs, **kind)


def run_on(gpus: list[str], steps: list[Step], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Any]:
    """Run steps on a machine with these GPUs and 16 cores, trainings on all of them. Returns the run and its counts."""
    settings = RuntimeConfig(training_processes="auto", device="cpu")
    monkeypatch.setattr(step_runner, "preflight", FoundOn(gpus))
    monkeypatch.setattr(step_runner, "usable_cores", lambda: 16)
    resolved, workspace = resolve(parse_recipe(RECIPE, "tiny")), Workspace(Root.of(folder / "root"))
    runtime = Runtime(workspace.root, "cpu", "32")
    subprocess = Subprocess(settings, {}, set(), runtime)
    plan = Plan(resolved, workspace, [Planned(step, None, "never made here") for step in steps], set())
    run = Run(resolved.recipe, plan, runtime, subprocess.get_or_make)

    def execute(run: Run, step: Step, inputs: Mapping[str, Artifact]) -> Artifact:
        return run.make(step, inputs, run.runtime)

    artifacts = run_concurrently(run, execute, subprocess)
    return run, {name: artifact.counts for name, artifact in artifacts.items()}


def all_cores(folder: Path) -> int:
    """Return the threads of a step that has all cores: the process of a step asks for them itself."""
    return Runtime(Root.of(folder)).threads


class FoundOn:
    """A preflight that finds these GPUs. It is sent to another process."""

    def __init__(self, gpus: list[str]) -> None:
        self.gpus = gpus

    def __call__(self, settings: RuntimeConfig, *_: Any) -> Devices:
        return Devices(self.gpus, settings)


def test_run_concurrently_gives_each_probe_and_finetuning_a_gpu_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not PROBE.trains
    assert not FINETUNE.trains
    steps = [looking(name, EVALUATIONS) for name in EVALUATIONS]
    _, counts = run_on(["0", "1", "2", "3"], steps, tmp_path, monkeypatch)
    assert sorted(each["gpus"] for each in counts.values()) == ["0", "1", "2", "3"]
    assert {each["threads"] for each in counts.values()} == {4}


def test_run_concurrently_gives_a_training_all_gpus_and_shares_out_cores_by_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step is alone when it runs, and computes with as many threads as if it were not."""
    steps = [
        looking("probe.scratch.pets", []),
        looking("student", ["probe.scratch.pets"], trains="fit.batch"),
        looking("finetune.student.pets", [], ("student",)),
    ]
    run, counts = run_on(["0", "1"], steps, tmp_path, monkeypatch)
    assert counts["student"] == {"gpus": "0,1", "processes": 2, "threads": 8}
    assert counts["finetune.student.pets"] == {"gpus": "0", "processes": 1, "threads": 8}
    assert run.log_path("student").read_text("utf-8").startswith("starting on 2 of 2 GPUs\n")
    assert "starting on 1 of 2 GPUs, as it can use one\n" in run.log_path("probe.scratch.pets").read_text("utf-8")


def test_run_concurrently_without_gpus_runs_one_step_at_a_time_on_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, counts = run_on([], [looking(name, []) for name in EVALUATIONS], tmp_path, monkeypatch)
    assert list(counts.values()) == [{"gpus": None, "processes": 1, "threads": all_cores(tmp_path)}] * 4
