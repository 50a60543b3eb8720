"""Trackers: one file each, which writes the curves and the numbers of a run in the format of another tool.

A tracker reads what the steps have left, once a run is done; trainings know nothing of it. It is a file with `PACKAGE`,
the installed package that it needs, and `write(run, folder)`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

from evaluation.report.run_record import TOTAL, RunRecord, TrainingLog
from pipeline.errors import ConfigError, install_command, require_one_of
from pipeline.recipe.plugins import modules

TRACKERS = "evaluation.trackers"
DEFAULT = ("tensorboard",)
"""Trackers of a recipe that names none, if their packages are installed."""


class Scalar(NamedTuple):
    """A number of a run."""

    group: str
    """The step that it is of, and for a final metric the model, as in `evaluate/student`."""
    name: str
    step: int
    """Optimizer step; 0 for a final metric."""
    value: float


def check_tracker_names(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker that is not there. Loads none of their packages."""
    for name in names:
        require_one_of(name, modules(TRACKERS), "runtime.trackers:")


def chosen_trackers(names: Sequence[str] | None) -> list[str]:
    """Return the trackers of a recipe. Raises ConfigError if the package of one that it names is not installed."""
    if names is None:
        return [name for name in DEFAULT if _is_installed(name)]
    for name in names:
        if not _is_installed(name):
            needs = f"needs the extra {name}: {install_command(name)}"
            raise ConfigError(f"runtime.trackers names {name!r}, which {needs}. [] would do without.")
    return list(names)


def tracker(name: str) -> ModuleType:
    """Import the file of a tracker."""
    return importlib.import_module(f"{TRACKERS}.{name}")


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(tracker(name).PACKAGE) is not None


def tags(run: RunRecord) -> dict[str, list[str]]:
    """Return what runs are told apart by, from the recipe: the student's `backbone`, and the teachers' `task`s."""
    backbone = run.recipe.get("student", {}).get("backbone")
    tasks = {teacher["task"] for teacher in run.recipe.get("teachers", {}).values()}
    return {"backbone": [backbone] if backbone else [], "task": sorted(tasks)}


def scalars(run: RunRecord) -> Iterator[Scalar]:
    """Yield the curves of all trainings of a run, and its final metrics; what is not finite is left out."""
    yield from (scalar for scalar in _all_scalars(run) if math.isfinite(scalar.value))


def _all_scalars(run: RunRecord) -> Iterator[Scalar]:
    for step, artifact in run.artifacts.items():
        log = TrainingLog.of(artifact)
        for name, points in log.losses().items():
            yield from (Scalar(step, "loss" if name == TOTAL else f"loss/{name}", *point) for point in points)
        yield from (Scalar(step, "lr", line["step"], line["lr"]) for line in log.lines)
        for name, points in log.validation().items():
            yield from (Scalar(step, f"validation/{name}", *point) for point in points)
    for record in run.metrics():
        if record["value"] is not None:
            name = f"{record['task']}/{record['dataset']}/{record['metric']}"
            yield Scalar(f"evaluate/{record['model']}", name, 0, record["value"])
