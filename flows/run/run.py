"""A run of a recipe: make or reuse each step's artifact, and record what happens. No Prefect here.

A run has a folder of its own, `<root>/runs/<recipe>-<UTC time>/`:

    recipe.yaml      the recipe with all overrides and defaults filled in, its variables left as written
    plan.json        a row per step: reused or run, and why; its section of the recipe
    events.jsonl     a line per event: started, prefect, made, reused, failed, killed, finished, ended
    logs/<step>.log  what the step's processes printed
    metrics.json     the numbers of `evaluate`, if the run got that far
    measured.json    the numbers of probes, fine-tuning and comparisons, if the run got that far
    report.html      the report, if the run measured anything
    <tracker>/       the same for other tools, as TensorBoard's event files (`runtime.trackers`)
"""

from __future__ import annotations

import dataclasses
import functools
import json
import posixpath
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from evaluation.report.formatting import describe_suffixes, plural, teacher_scores
from flows.plan.run_plan import Plan
from flows.run.processes import open_private
from ingest.dataset import IngestedSet
from pipeline.errors import ConfigError, Stopped, mask_credentials
from pipeline.recipe.reader import as_written
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import Artifact, Inputs, Step, dump_json, read_json
from pipeline.steps.config_hash import masked
from pipeline.steps.events import parse_events
from pipeline.steps.run_names import new_names, run_order
from pipeline.steps.runtime import Runtime, stopped_in
from pipeline.storage.lock import IsHeld, hold_lock
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root

MANY_NOTES = 0.05
"""Notes of one kind on labels, for each image, from which on a progress line tells of them."""
GetOrMake = Callable[["Run", Step, Inputs], tuple[Artifact, bool]]
"""Returns the artifact of a step, and True if it was made by this call."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a run."""

    folder: StoragePath | None
    """The folder with the report. If there was nothing to do: the folder of the run that wrote the report."""
    artifacts: Mapping[str, Artifact]
    """By step, in the order of the plan."""
    ran: int
    """Number of steps that were run rather than reused."""
    measures: bool = False
    """True if the last step leaves numbers that the report shows."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.json`; none if the run did not get as far as `evaluate`."""
        made = self.artifacts.get("evaluate")
        return list(made.load("metrics.json", read_json)) if made else []


class Run:
    """A run under way, in its folder. Its methods may be called from several threads."""

    def __init__(self, recipe: Recipe, plan: Plan, runtime: Runtime, get_or_make: GetOrMake) -> None:
        self.recipe, self.plan, self.runtime, self.get_or_make = recipe, plan, runtime, get_or_make
        self.workspace, self.planned = plan.workspace, plan.planned
        self.folder = _new_folder(self.workspace.root, recipe)
        self.made = 0
        """Number of steps that were made rather than reused."""
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
        self.folder.child("plan.json").write(dump_json(masked(rows)).encode())

    def record(self, event: str, /, **facts: Any) -> None:
        """Append an event to events.jsonl."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **masked(facts)})
        with self._lock:
            self.folder.child("events.jsonl").append(f"{line}\n".encode())
            self.runtime.on_event(json.loads(line))

    def hold_lock(self) -> AbstractContextManager[IsHeld]:
        """Mark the run as active while inside, so that `must artifacts gc` keeps what it refers to."""
        folder = self.workspace.locks / "runs" / self.folder.name
        return hold_lock(folder, lambda _: None, on_lost=self.runtime.stop.set)

    def log_path(self, step: str) -> Path:
        """Return the file on this machine that a step's processes print to."""
        return self.workspace.root.local_path(f"runs/{self.folder.name}/logs/{step}.log")

    def log(self, step: str, line: str) -> None:
        """Append a line to a step's log."""
        self.log_path(step).parent.mkdir(parents=True, exist_ok=True)
        with open(self.log_path(step), "a", encoding="utf-8", opener=open_private) as log:
            log.write(f"{mask_credentials(line)}\n")

    def reuse(self, step: Step, inputs: Mapping[str, Artifact]) -> Artifact | None:
        """Return the artifact of a step if it exists; None if it does not, or is to be made again."""
        if step.name in self.plan.force:
            return None
        artifact = self.workspace.find(step, step.fingerprint(inputs))
        if artifact:
            self._record_reuse(step.name, artifact)
            self._check_after_last_early_step(step.name, artifact)
        return artifact

    def _record_reuse(self, step: str, artifact: Artifact) -> None:
        self.record("reused", step=step, artifact=artifact.fingerprint)
        self.runtime.progress(step, 1.0, "reused")

    def make(self, step: Step, inputs: Mapping[str, Artifact], runtime: Runtime) -> Artifact:
        """Make the artifact of a step, or wait for it if another run is making it."""
        fingerprint = step.fingerprint(inputs)
        self.runtime.check_stop(step.name)
        self.record("started", step=step.name, artifact=fingerprint)
        began = time.time()
        try:
            # for a step that runs in this process; the others print their lines
            logged = dataclasses.replace(runtime, log=functools.partial(self.log, step.name))
            artifact, is_new = self.get_or_make(self, step, Inputs(inputs, logged, step.name in self.plan.force))
        except BaseException as error:
            self.record("failed", step=step.name, **describe_error(error))
            if type(error) is Stopped:  # name the step, whichever part of it was stopped
                raise stopped_in(step.name, step.name in self.plan.force) from error
            raise
        finally:
            if self.log_path(step.name).exists():
                self.workspace.root.upload(self.log_path(step.name))
                if not self.workspace.root.local:
                    self.log_path(step.name).unlink()
        if is_new:
            seconds = time.time() - began
            with self._lock:
                self.made += 1
            self.record("made", step=step.name, artifact=fingerprint, seconds=round(seconds, 2), counts=artifact.counts)
            runtime.progress(
                step.name,
                1.0,
                f"made in {seconds:.0f} s{_unusable_files(artifact)}{_labels(artifact)}{_scores(artifact)}",
            )
        else:
            self._record_reuse(step.name, artifact)
        self._check_after_last_early_step(step.name, artifact)
        return artifact

    def _check_after_last_early_step(self, step: str, artifact: Artifact) -> None:
        """Check the plan as soon as the last early step is done, before any training."""
        with self._lock:
            if step not in self._early or self._early[step]:
                return
            self._early[step] = artifact
            early = dict(self._early)
        self.plan.check(early, self.runtime)


def _scores(artifact: Artifact) -> str:
    """Return the end of a progress line that says how good a teacher is; "" if it was not measured."""
    scores = teacher_scores(artifact.counts) if artifact.kind == "teacher" else ""
    return f"; {scores}" if scores else ""


def _labels(artifact: Artifact) -> str:
    """Return the end of a progress line that says which images of a set lack labels, and what is odd about many."""
    if artifact.kind != "data":
        return ""
    images, spaces = artifact.counts["images"], IngestedSet(artifact).spaces
    told = ""
    for task in spaces:
        labelled = sum(count for key, count in artifact.counts.items() if key.startswith(f"labels.{task}."))
        if labelled < images:
            told += f"; labels{f' for {task}' if len(spaces) > 1 else ''} of {labelled:,} of {plural(images, 'image')}"
    note, count = next(iter(artifact.counts.get("frequent_notes", {}).items()), ("", 0))
    return f"{told}; {note}: {plural(count, 'time')}" if count >= MANY_NOTES * images and count else told


def _unusable_files(artifact: Artifact) -> str:
    """Return the end of a progress line that says what of a set could not be used, and what is no image."""
    files, skipped = artifact.counts.get("quarantined", 0), artifact.counts.get("skipped", {})
    dropped = artifact.counts.get("dropped", 0)
    unusable = f"; {plural(files, 'file')} could not be used" if files else ""
    if conflicts := artifact.counts.get("conflicts", 0):
        unusable += f"; {plural(conflicts, 'file')} with another label than the same image has already"
    if dropped:
        unusable += f"; {dropped:,} of {artifact.counts['annotations']:,} annotations could not be used"
    return f"{unusable}; no images: {describe_suffixes(skipped)}" if skipped else unusable


def _new_folder(root: Root, recipe: Recipe) -> StoragePath:
    """Create the folder of a run, of a name that no run on any machine has, with its recipe in it.

    What the recipe takes from the environment stays there, and credentials in its URLs are masked.
    """
    text = yaml.safe_dump(masked(as_written(recipe)), sort_keys=False).encode()
    for name in new_names(recipe.name):
        folder = root / f"runs/{name}"
        try:
            if folder.child("recipe.yaml").create(text):
                return folder
        except OSError as error:
            raise ConfigError(f"--root {root}: can't be written to ({error.strerror}). Name another folder.") from error
    raise AssertionError("unreachable: names don't end")


def describe_error(error: BaseException) -> dict[str, str]:
    """Return an error as the facts of an event. By `kind` a reader tells Stopped from failures."""
    return {"kind": type(error).__name__, "error": str(error) or type(error).__name__}


def completed_outcome(plan: Plan) -> Outcome | None:
    """Return the outcome if there is nothing to do: every artifact exists, and a report if any of them needs one."""
    artifacts = {each.step.name: each.artifact for each in plan.planned if each.artifact}
    if len(artifacts) < len(plan.planned):
        return None
    measured = plan.measured(artifacts)
    folder = _find_report(plan.workspace.root, measured) if measured else None
    if measured and folder is None:
        return None
    return Outcome(folder, artifacts, 0, plan.measures)


def _find_report(root: Root, measured: Mapping[str, Artifact]) -> StoragePath | None:
    """Return the folder of the newest run that wrote a report on all these artifacts."""
    wanted = {(name, artifact.fingerprint) for name, artifact in measured.items()}
    runs = root / "runs"
    reports = [posixpath.dirname(name) for name in runs.files() if posixpath.basename(name) == "report.html"]
    for name in sorted(reports, key=run_order, reverse=True):
        folder = runs.child(name)
        events = parse_events(folder.child("events.jsonl").read_if_exists() or b"")
        if wanted <= {(event.get("step"), event.get("artifact")) for event in events if "artifact" in event}:
            return folder
    return None
