"""A run: its plan, what is reused and what is made, and the record of it. No Prefect here.

<root>/runs/<run>/recipe.yaml plan.json events.jsonl logs/<step>.log metrics.json measured.json report.html
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import posixpath
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from evaluation.report.formatting import plural
from flows.plan.label_checks import check_labels
from flows.plan.plan import Planned, plan
from flows.plan.resolve import ResolvedRecipe, resolve
from flows.plan.selection import Selection
from flows.plan.steps import plan_recipe
from ingest.rejections import REJECTED_LABELS
from pipeline.errors import ConfigError, DataError, Stopped
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import Artifact, Inputs, Step, as_json, parse_lines, read_json
from pipeline.steps.runtime import Runtime, stopped_in
from pipeline.steps.workspace import Workspace
from pipeline.storage.lock import IsHeld, hold_lock
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from pipeline.stores.rejections import read_rejections

Work = Callable[["Run", Step, Inputs], tuple[Artifact, bool]]
"""Comes to a step's artifact, and tells whether it was made now."""
WHOLE_RECIPE = Selection()


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps that a run is about, on a root folder, and the names of those it makes though they are there."""

    resolved: ResolvedRecipe
    workspace: Workspace
    planned: list[Planned]
    force: set[str]

    @property
    def early(self) -> dict[str, Artifact | None]:
        """By early step (`StepKind.early`) its artifact, if it is there."""
        return {each.step.name: each.artifact for each in self.planned if each.step.kind.early}

    @property
    def measures(self) -> bool:
        """True if the last step leaves numbers that the report shows."""
        return self.planned[-1].step.kind.measures

    @property
    def compares(self) -> bool:
        """True if steps of comparisons are among them."""
        return any(each.step.section[0] == COMPARE for each in self.planned)

    def measured(self, artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """Return those of the run's artifacts that hold numbers for the report."""
        return {each.step.name: artifacts[each.step.name] for each in self.planned if each.step.kind.measures}

    def check(self, made: Mapping[str, Artifact], runtime: Runtime) -> None:
        """Raise ConfigError if steps that are still to be made ask for labels that the sets lack, of which there is by
        now all that early steps leave.
        """
        check_labels([each.step for each in self.planned if each.artifact is None], Inputs(made, runtime))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a run."""

    folder: StoragePath | None
    """The folder with its report; of a run that had nothing to do, that of the run that made the report."""
    artifacts: Mapping[str, Artifact]
    """By step, in the order of the plan."""
    ran: int
    """Steps that were run rather than reused."""
    measures: bool = False
    """True if the last step leaves numbers that the report shows."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.json`."""
        records: list[dict[str, Any]] = self.artifacts["evaluate"].load("metrics.json", read_json)
        return records


class Run:
    """One run in its folder: an event line for everything that happens."""

    def __init__(self, recipe: Recipe, plan: Plan, runtime: Runtime, work: Work) -> None:
        self.recipe, self.plan, self.runtime, self.work = recipe, plan, runtime, work
        self.workspace, self.planned = plan.workspace, plan.planned
        self.folder = _new_folder(self.workspace.root, recipe)
        self.made = 0
        self._lock = threading.Lock()
        self._early = plan.early if None in plan.early.values() else {}
        rows = [
            {
                "step": each.step.name,
                "section": each.step.section,
                "action": each.action,
                "why": each.why,
                "artifact": each.artifact and each.artifact.fingerprint,
            }
            for each in self.planned
        ]
        self.folder.child("plan.json").write(as_json(rows).encode())

    def event(self, kind: str, /, **facts: Any) -> None:
        """Append a line to events.jsonl."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **facts})
        with self._lock:
            self.folder.child("events.jsonl").append(f"{line}\n".encode())

    def at_work(self) -> AbstractContextManager[IsHeld]:
        """While inside, the run is known to be at work, and what it refers to is kept."""
        return hold_lock(
            self.workspace.claims / "runs" / self.folder.name, lambda _: None, on_lost=self.runtime.stop.set
        )

    def log(self, step: str) -> Path:
        """Where the processes of a step print to, on this machine."""
        return self.workspace.root.local_path(f"runs/{self.folder.name}/logs/{step}.log")

    def note(self, step: str, line: str) -> None:
        """Add a line to what the processes of a step print."""
        self.log(step).parent.mkdir(parents=True, exist_ok=True)
        with open(self.log(step), "a", encoding="utf-8") as log:
            log.write(f"{line}\n")

    def reuse(self, step: Step, inputs: Mapping[str, Artifact]) -> Artifact | None:
        """The artifact of a step, if it is there and not to be made anew."""
        if step.name in self.plan.force:
            return None
        fingerprint = step.fingerprint(inputs)
        found = self.workspace.find(step, fingerprint)
        if found:
            self._reused(step, fingerprint)
            self._arrived(step.name, found)
        return found

    def _reused(self, step: Step, fingerprint: str) -> None:
        self.event("reused", step=step.name, artifact=fingerprint)
        self.runtime.progress(step.name, 1.0, "reused")

    def make(self, step: Step, inputs: Mapping[str, Artifact], runtime: Runtime) -> Artifact:
        """The artifact of a step, made now; or made by another run, where one is at work on it."""
        fingerprint = step.fingerprint(inputs)
        self.runtime.check_stop(step.name)
        self.event("started", step=step.name, artifact=fingerprint)
        runtime.progress(step.name, 0.0, "starting")
        began = time.time()
        try:
            artifact, made = self.work(self, step, Inputs(inputs, runtime, step.name in self.plan.force))
        except BaseException as error:
            self.event("failed", step=step.name, **describe_error(error))
            if type(error) is Stopped:  # whatever part of the step it was
                raise stopped_in(step.name, step.name in self.plan.force) from error
            raise
        finally:
            self._keep_log(step.name)
        if made:
            seconds = time.time() - began
            with self._lock:
                self.made += 1
            self.event("made", step=step.name, artifact=fingerprint, seconds=round(seconds, 2), counts=artifact.counts)
            runtime.progress(step.name, 1.0, f"made in {seconds:.0f} s{_left_out(artifact)}")
        else:
            self._reused(step, fingerprint)
        self._arrived(step.name, artifact)
        return artifact

    def _arrived(self, step: str, artifact: Artifact) -> None:
        """Check what is asked of the sets as soon as the last early step is done."""
        with self._lock:
            if step not in self._early or self._early[step]:
                return
            self._early[step] = artifact
            there = {name: made for name, made in self._early.items() if made}
        if len(there) == len(self._early):
            self.plan.check(there, self.runtime)

    def _keep_log(self, step: str) -> None:
        if self.log(step).exists():
            self.workspace.root.upload(self.log(step))


def _left_out(made: Artifact) -> str:
    """What a set could not make use of, for who follows the run."""
    files = made.counts.get("quarantined", 0)
    return f"; {plural(files, 'file')} could not be used" if files else ""


def _new_folder(root: Root, recipe: Recipe) -> StoragePath:
    """A folder for a run, with its recipe, named after recipe and time; runs that begin in the same second, on any
    machine, are numbered.
    """
    stem = f"runs/{recipe.name}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).encode()
    for number in itertools.count(1):
        folder = root / (stem if number == 1 else f"{stem}-{number}")
        try:
            if folder.child("recipe.yaml").create(text):
                return folder
        except OSError as error:
            raise ConfigError(f"--root {root}: can't be written to ({error.strerror}). Name another folder.") from error
    raise AssertionError("unreachable: numbers don't end")


def describe_error(error: BaseException) -> dict[str, str]:
    """An error, for an event: Stopped is no failure, and a reader can tell by `kind`."""
    return {"kind": type(error).__name__, "error": str(error) or type(error).__name__}


def plan_run(recipe: Recipe, root: Root, selection: Selection = WHOLE_RECIPE) -> Plan:
    """The plan of a run of a recipe on a root folder. ConfigError if the sets, where they have been read, lack labels
    that it asks for.
    """
    plan = plan_unchecked(recipe, root, selection)
    made = {name: artifact for name, artifact in plan.early.items() if artifact}
    if len(made) == len(plan.early):
        plan.check(made, Runtime.of(recipe.runtime, root))
    return plan


def plan_unchecked(recipe: Recipe, root: Root, selection: Selection = WHOLE_RECIPE) -> Plan:
    """What there is and what is not on a root folder, whether or not a run could make it."""
    workspace = Workspace(root)
    resolved = resolve(recipe, read_rejections(root))
    steps = plan_recipe(resolved)
    force = selection.forced(steps)
    return Plan(resolved, workspace, selection.of(plan(steps, workspace, force)), force)


def find_inputs(recipe: Recipe, root: Root, name: str) -> tuple[Step, Inputs]:
    """The step `name` and the artifacts that it reads. DataError if they were not made yet, or for other settings."""
    plan = plan_unchecked(recipe, root)
    planned = {each.step.name: each for each in plan.planned}
    step, runtime = planned[name].step, Runtime.of(recipe.runtime, root)
    made = {each: planned[each].artifact for each in step.inputs}
    if REJECTED_LABELS in made and made[REJECTED_LABELS] is None:  # a copy of what was rejected by now needs no run
        made[REJECTED_LABELS], _ = plan.workspace.get_or_make(planned[REJECTED_LABELS].step, Inputs({}, runtime))
    missing = [each for each, artifact in made.items() if artifact is None]
    if missing:
        raise DataError(
            f"{root}: there is nothing for {', '.join(missing)} as the recipe {recipe.name!r} has it now: "
            "`must label` with this recipe and root makes it; `must plan` says what differs."
        )
    present = {each: artifact for each, artifact in made.items() if artifact}
    return step, Inputs(present, runtime)


def completed_outcome(plan: Plan) -> Outcome | None:
    """The outcome, if every step's artifact is there, and of a run that measured its report as well."""
    artifacts = {each.step.name: each.artifact for each in plan.planned if each.artifact}
    if len(artifacts) < len(plan.planned):
        return None
    results = plan.measured(artifacts)
    if not results:
        return Outcome(None, artifacts, 0, plan.measures)
    folder = find_report(plan.workspace.root, results)
    return Outcome(folder, artifacts, 0, plan.measures) if folder else None


def find_report(root: Root, results: Mapping[str, Artifact]) -> StoragePath | None:
    """The newest run that left a report on all these results; a run may have been killed before it did."""
    wanted = {(name, made.fingerprint) for name, made in results.items()}
    runs = root / "runs"
    reports = [name for name in runs.files() if posixpath.basename(name) == "report.html"]
    for report in sorted(reports, key=_began, reverse=True):
        folder = runs.child(posixpath.dirname(report))
        events = parse_lines(folder.child("events.jsonl").read())
        if wanted <= {(event.get("step"), event.get("artifact")) for event in events}:
            return folder
    return None


def _began(report: str) -> tuple[str, int]:
    """When a run began, and which one of that second it was, by the name of its folder."""
    found = re.search(r"-(\d{8}-\d{6})(?:-(\d+))?/", report)
    return (found[1], int(found[2] or 1)) if found else ("", 0)
