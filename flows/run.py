"""Carrying out a run: the order of steps, what is reused, the record of it. No Prefect here.

<root>/runs/<run>/recipe.yaml plan.json events.jsonl metrics.json report.html
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from flows.dag import Planned, build_steps, plan, up_to
from pipeline.artifacts import Artifact, Inputs, Step, Workspace, fingerprint, write_atomically, write_json
from pipeline.config import Recipe, Section
from pipeline.errors import ConfigError, naming
from pipeline.runtime import Runtime

SHOW_CURSOR = b"\x1b[?25h\n"
"""Progress bars hide it, and a process that ends at once has no time to bring it back."""
Execute = Callable[["Run", Step, Mapping[str, Artifact]], Artifact]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to: the folder with its report (of a run that had nothing to do, that of the run which had),
    its artifacts by step, and how many steps were run rather than reused.
    """

    folder: Path | None
    artifacts: Mapping[str, Artifact]
    ran: int

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.json`."""
        text = (self.artifacts["evaluate"].path / "metrics.json").read_text(encoding="utf-8")
        records: list[dict[str, Any]] = json.loads(text)
        return records


class Run:
    """One run in its folder: an event line for everything that happens."""

    def __init__(self, recipe: Recipe, workspace: Workspace, planned: list[Planned], runtime: Runtime) -> None:
        self.recipe, self.workspace, self.planned, self.runtime = recipe, workspace, planned, runtime
        self.folder = _new_folder(workspace.root / "runs", recipe.name)
        self.made = 0
        self._lock = threading.Lock()
        write_atomically(self.folder / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        rows = [{"step": p.step.name, "action": p.action, "why": p.why} for p in planned]
        write_json(self.folder / "plan.json", rows)

    def event(self, kind: str, /, **facts: Any) -> None:
        """Append a line to events.jsonl."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **facts})
        with self._lock, open(self.folder / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def obtain(self, step: Step, inputs: Mapping[str, Artifact]) -> Artifact:
        """The artifact of a step: found, or made now."""
        return self.reuse(step, inputs) or self.make(step, inputs, self.runtime)

    def reuse(self, step: Step, inputs: Mapping[str, Artifact]) -> Artifact | None:
        """The artifact of a step, if it is there."""
        mark = _mark(step, inputs)
        found = self.workspace.find(step, mark)
        if found:
            self.event("reused", step=step.name, artifact=mark)
            self.runtime.progress(step.name, 1.0, "reused")
        return found

    def make(self, step: Step, inputs: Mapping[str, Artifact], runtime: Runtime) -> Artifact:
        """The artifact of a step, made now."""
        mark = _mark(step, inputs)
        self.runtime.check_stop(step.name)
        self.event("started", step=step.name, artifact=mark)
        runtime.progress(step.name, 0.0, "starting")
        began = time.time()
        try:
            made = self.workspace.make(step, Inputs(inputs, runtime))
        except BaseException as error:
            self.event("failed", step=step.name, **_told(error))
            raise
        seconds = time.time() - began
        self.made += 1
        self.event("made", step=step.name, artifact=mark, seconds=round(seconds, 2), counts=made.counts)
        runtime.progress(step.name, 1.0, f"made in {seconds:.0f} s")
        return made


def _new_folder(runs: Path, name: str) -> Path:
    """A folder for a run, named after recipe and time; runs that begin in the same second are numbered."""
    stem = f"{name}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        folder = runs / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f"--root {runs.parent}: can't be written to ({error.strerror}). Name another folder."
            ) from error
        return folder
    raise AssertionError("unreachable: numbers don't end")


def _mark(step: Step, inputs: Mapping[str, Artifact]) -> str:
    return fingerprint(step, {name: made.digest for name, made in inputs.items()})


def _told(error: BaseException) -> dict[str, str]:
    """An error, for an event: Stopped is no failure, and a reader can tell by `kind`."""
    return {"kind": type(error).__name__, "error": str(error) or type(error).__name__}


def prepare(recipe: Recipe, root: Path) -> tuple[Workspace, list[Planned]]:
    """The plan of a recipe on a root folder."""
    workspace = Workspace(root)
    return workspace, plan(build_steps(recipe), workspace)


def carry_out(run: Run, execute: Execute) -> dict[str, Artifact]:
    """All steps in order; `execute` makes or finds one."""
    artifacts: dict[str, Artifact] = {}
    for planned in run.planned:
        step = planned.step
        artifacts[step.name] = execute(run, step, {name: artifacts[name] for name in step.inputs})
    return artifacts


def inline(run: Run, step: Step, inputs: Mapping[str, Artifact]) -> Artifact:
    """A step in this process."""
    return run.obtain(step, inputs)


def finish(run: Run, artifacts: Mapping[str, Artifact]) -> Outcome:
    """Leave the metrics and the report in the run's folder, if the run went as far as measuring."""
    if "evaluate" in artifacts:
        _leave_results(run, artifacts)
    run.event("finished")
    return Outcome(run.folder, artifacts, run.made)


def _leave_results(run: Run, artifacts: Mapping[str, Artifact]) -> None:
    from evaluation.report import write_report  # noqa: PLC0415 - not needed for a plan

    metrics = (artifacts["evaluate"].path / "metrics.json").read_text(encoding="utf-8")
    write_atomically(run.folder / "metrics.json", metrics)
    write_report(run.folder, artifacts, run.workspace.root)


@contextmanager
def stopping(stop: threading.Event) -> Iterator[None]:
    """While inside, the first SIGTERM or SIGINT asks for an orderly stop; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), SHOW_CURSOR)
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def nothing_to_do(planned: list[Planned], root: Path) -> Outcome | None:
    """The outcome, if every step's artifact is there, and of a run that measured its report as well."""
    artifacts = {each.step.name: each.artifact for each in planned if each.artifact}
    if len(artifacts) < len(planned):
        return None
    if "evaluate" not in artifacts:
        return Outcome(None, artifacts, 0)
    folder = find_report(root / "runs", artifacts["evaluate"])
    return Outcome(folder, artifacts, 0) if folder else None


def find_report(runs: Path, evaluated: Artifact) -> Path | None:
    """The newest run that left a report on these results; a run may have been killed before it did."""
    mark = evaluated.manifest["fingerprint"]
    reports = sorted(runs.glob("*/report.html"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for report in reports:
        lines = (report.parent / "events.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines if line.endswith("}")]
        if any(event.get("step") == "evaluate" and event.get("artifact") == mark for event in events):
            return report.parent
    return None


def models(recipe: Recipe) -> dict[str, Section]:
    """The sections that name models, by their place in the recipe."""
    teachers: dict[str, Section] = {f"teachers.{name}": teacher for name, teacher in recipe.teachers.items()}
    return {**teachers, "student": recipe.student}


def check_first(recipe: Recipe) -> None:
    """Raise ConfigError for what would otherwise stop the run in the middle: a device or a model that is not there."""
    from pipeline.machine import find_device  # noqa: PLC0415 - loads torch, which a plan does without
    from tasks.network import check_head_name  # noqa: PLC0415

    find_device(recipe.runtime.device)
    for name in recipe.teachers:
        check_head_name(name)
    for place, section in models(recipe).items():
        with naming(place):
            section.check()


def execute_recipe(recipe: Recipe, runtime: Runtime, last: str = "evaluate") -> Outcome:
    """Run a recipe up to the step `last` with the runner it names; a run with nothing to do starts nothing."""
    workspace, planned = prepare(recipe, runtime.root)
    planned = up_to(planned, last)
    done = nothing_to_do(planned, runtime.root)
    if done:
        return done
    check_first(recipe)
    run = Run(recipe, workspace, planned, runtime)
    only_report = all(each.artifact for each in planned)
    try:
        with stopping(runtime.stop):
            if recipe.runtime.runner == "inline" or only_report:
                artifacts = carry_out(run, inline)
            else:
                from flows.selftrain import run_with_prefect  # noqa: PLC0415 - Prefect takes seconds to import

                artifacts = run_with_prefect(run)
            return finish(run, artifacts)
    except BaseException as error:
        run.event("ended", **_told(error))
        raise
