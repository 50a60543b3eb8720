"""Carrying out a recipe: the runner it names, an orderly stop, and the report at the end. No Prefect here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from flows.run.run import Outcome, Plan, Run, describe_error
from flows.run.runners import check_runner
from flows.run.signals import stop_on_signals
from flows.run.step_runner import InProcess, Subprocess, in_order
from pipeline.errors import ConfigError
from pipeline.recipe.recipe import Recipe
from pipeline.steps import ranks
from pipeline.steps.artifact import Artifact, Inputs, Step, as_json
from pipeline.steps.runtime import Runtime
from pipeline.storage.errors import explain_full_disk
from pipeline.storage.path import StoragePath

Carry = Callable[[Run, Subprocess], Mapping[str, Artifact]]
"""Carries out the steps of a run."""


def execute_plan(recipe: Recipe, plan: Plan, runtime: Runtime, carry: Carry | None) -> Outcome:
    """A run of a plan: its steps in processes of their own, carried out by `carry`; or in this one, in order (None)."""
    check_runner(recipe.runtime)
    with stop_on_signals(runtime.stop), explain_full_disk(f"run of {recipe.name!r}", runtime.root.local_path()):
        models = plan.resolved.models(plan.compares)
        work = Subprocess(recipe.runtime, models, runtime) if carry else InProcess(recipe.runtime, models, runtime)
        run = Run(recipe, plan, runtime, work.step)
        try:
            with run.at_work():
                artifacts = carry(run, work) if carry and isinstance(work, Subprocess) else in_order(run, inline_step)
                if plan.measured(artifacts):
                    work.other(_leave_results, (run.folder, artifacts), runtime)
        except BaseException as error:
            run.event("ended", **describe_error(error))
            raise
    run.event("finished")
    return Outcome(run.folder, artifacts, run.made, plan.measures)


def check_torchrun(recipe: Recipe, plan: Plan) -> None:
    """Raise ConfigError unless what torchrun started is the training of one network."""
    todo = [each.step for each in plan.planned if each.artifact is None]
    if recipe.runtime.runner != "inline" or len(todo) != 1 or not todo[0].kind.trains:
        raise ConfigError(
            f"torchrun started {ranks.count()} processes, which can train one network: run it with --only STEP, a "
            f"teacher that is trained or the student, and -o runtime.runner=inline. To do here: "
            f"{', '.join(step.name for step in todo) or 'nothing'}, with runner {recipe.runtime.runner!r}."
        )


def join_training(plan: Plan, runtime: Runtime) -> Outcome:
    """Train along with the first process, which writes everything."""
    *before, last = plan.planned
    made = {each.step.name: each.artifact for each in before if each.artifact}
    with stop_on_signals(runtime.stop):
        plan.workspace.take_part(last.step, Inputs({name: made[name] for name in last.step.inputs}, runtime))
    return Outcome(None, made, 0)


def inline_step(run: Run, step: Step, inputs: Mapping[str, Artifact]) -> Artifact:
    """A step of a run without Prefect."""
    return run.reuse(step, inputs) or run.make(step, inputs, run.runtime)


def _leave_results(folder: StoragePath, artifacts: Mapping[str, Artifact], runtime: Runtime) -> None:
    """The numbers and the report in the run's folder."""
    from evaluation.backbone_table import as_json as records_of  # noqa: PLC0415
    from evaluation.report.report import write_report  # noqa: PLC0415 - loads half the product

    if "evaluate" in artifacts:
        folder.child("metrics.json").write(artifacts["evaluate"].load("metrics.json", Path.read_bytes))
    records = records_of(artifacts)
    if records:
        folder.child("measured.json").write(as_json(records).encode())
    write_report(folder, artifacts)
