"""Execute a planned run: steps, orderly stop, and the report at the end. No Prefect here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from evaluation.report.run_record import RunRecord
from evaluation.trackers import chosen_trackers, tracker
from flows.plan.run_plan import Plan
from flows.run.run import Outcome, Run, describe_error
from flows.run.runner_check import check_runner
from flows.run.signals import stop_on_signals
from flows.run.step_runner import InProcess, Subprocess, in_order
from pipeline.errors import ConfigError, Stopped
from pipeline.recipe.recipe import Recipe
from pipeline.steps import ranks
from pipeline.steps.artifact import Artifact, Inputs, Step, dump_json
from pipeline.steps.runtime import Runtime
from pipeline.storage.path import StoragePath
from pipeline.storage.shortage import explain_shortage

RunSteps = Callable[[Run, Subprocess], Mapping[str, Artifact]]
"""Runs all steps of a run in subprocesses, and returns their artifacts by step."""


def execute_plan(recipe: Recipe, plan: Plan, runtime: Runtime, run_steps: RunSteps | None) -> Outcome:
    """Run the steps of a plan and write the report.

    Args:
        run_steps: Runs the steps in processes of their own; None to run them in this process, in order.
    """
    settings = recipe.runtime
    check_runner(settings)
    trackers = chosen_trackers(settings.trackers)
    with stop_on_signals(runtime.stop), explain_shortage(f"run of {recipe.name!r}", runtime.root.local_path()):
        models = plan.resolved.models(plan.compares)
        start = Subprocess if run_steps else InProcess
        runner = start(settings, models, plan.still_to_make(models), runtime)
        if isinstance(runner, Subprocess) and None not in plan.early.values():
            runner.wait_until_checked()  # there is no data to be read meanwhile
        run = Run(recipe, plan, runtime, runner.get_or_make)
        try:
            with run.hold_lock():
                artifacts = run_steps(run, runner) if run_steps and isinstance(runner, Subprocess) else in_order(run)
                if plan.measured(artifacts):
                    runner.run_function(_write_results, (run.folder, artifacts), runtime)
                if trackers:
                    _track(run, artifacts, trackers, runner)
        except BaseException as error:
            cause = runner.refusal if isinstance(runner, Subprocess) and isinstance(error, Stopped) else None
            run.record("ended", **describe_error(cause or error))
            if cause:
                raise cause from None  # the run was stopped for it
            raise
    run.record("finished")
    return Outcome(run.folder, artifacts, run.made, plan.measures)


def _track(run: Run, artifacts: Mapping[str, Artifact], trackers: list[str], runner: InProcess | Subprocess) -> None:
    """Let trackers write the curves and numbers of a run. A run never fails over this: what goes wrong is recorded."""
    for name in trackers:
        try:
            runner.run_function(_write_tracker, (run.folder, artifacts, name), run.runtime)
        except Exception as error:
            run.record("trackers", tracker=name, error=f"{type(error).__name__}: {error}")


def step_for_torchrun(recipe: Recipe, plan: Plan) -> Step:
    """Return the step to train. Raises ConfigError unless the plan has one step to run, which trains a network."""
    todo = [each.step for each in plan.planned if each.artifact is None]
    if recipe.runtime.runner != "inline" or len(todo) != 1 or not todo[0].kind.trains:
        raise ConfigError(
            f"torchrun started {ranks.count()} processes, which can train one network: run it with --only STEP, a "
            f"teacher that is trained, the student or a stage, and -o runtime.runner=inline. To do here: "
            f"{', '.join(step.name for step in todo) or 'nothing'}, with runner {recipe.runtime.runner!r}."
        )
    return todo[0]


def join_training(plan: Plan, step: Step, runtime: Runtime) -> Outcome:
    """Train along with the process of rank 0, which writes all files."""
    artifacts = {each.step.name: each.artifact for each in plan.planned if each.artifact}
    with stop_on_signals(runtime.stop):
        plan.workspace.take_part(step, Inputs({name: artifacts[name] for name in step.inputs}, runtime))
    return Outcome(None, artifacts, 0)


def _write_results(folder: StoragePath, artifacts: Mapping[str, Artifact], runtime: Runtime) -> None:
    """Write the numbers and the report to the run's folder."""
    from evaluation.backbone_table import measurements_json  # noqa: PLC0415
    from evaluation.report.report import write_report  # noqa: PLC0415 - loads half the product

    if "evaluate" in artifacts:
        folder.child("metrics.json").write(artifacts["evaluate"].load("metrics.json", Path.read_bytes))
    records = measurements_json(artifacts)
    if records:
        folder.child("measured.json").write(dump_json(records).encode())
    write_report(folder, artifacts)


def _write_tracker(folder: StoragePath, artifacts: Mapping[str, Artifact], name: str, runtime: Runtime) -> None:
    """Write the files of a tracker into a folder of the run's folder that is named after it."""
    own = runtime.root.local_path(f"runs/{folder.name}/{name}")
    own.mkdir(parents=True, exist_ok=True)
    try:
        tracker(name).write(RunRecord(folder, artifacts), own)
        runtime.root.upload(*(path for path in sorted(own.rglob("*")) if path.is_file()))
    finally:
        if not runtime.root.local:
            shutil.rmtree(own)
