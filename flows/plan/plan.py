"""Plan steps: for each, whether its artifact is reused, or why it is made. No torch, no Prefect."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence, Set

from pipeline.steps.artifact import Artifact, Step
from pipeline.steps.config_hash import flat, masked
from pipeline.steps.workspace import Workspace


@dataclasses.dataclass(frozen=True)
class Planned:
    """A step before the run: its artifact if it is reused, and why it is reused or run."""

    step: Step
    artifact: Artifact | None
    why: str

    @property
    def action(self) -> str:
        return "reuse" if self.artifact else "run"


def plan(steps: list[Step], workspace: Workspace, force: Set[str] = frozenset()) -> list[Planned]:
    """Plan every step; those in `force` are run again. Reads manifests only."""
    planned: dict[str, Planned] = {}
    for step in steps:
        waiting = [name for name in step.inputs if planned[name].artifact is None]
        inputs = {name: made for name in step.inputs if (made := planned[name].artifact)}
        ready = step.name not in force and not waiting
        found = workspace.find(step, step.fingerprint(inputs)) if ready else None
        if step.name in force:
            why = "to be made again"
        elif found:
            why = "nothing changed"
        else:
            why = _changes(step, inputs, workspace, waiting)
            if waiting:
                waits = f"waits for {listed(waiting)}"
                why = f"{why}; {waits}" if why else f"{waits}; runs unless its result is as before"
        planned[step.name] = Planned(step, found, why or "its files are no longer complete")
    return list(planned.values())


def needed_by(planned: Sequence[Planned], names: Sequence[str]) -> list[Planned]:
    """Return the part of a plan that these steps need, they included."""
    by_name = {each.step.name: each for each in planned}
    needed, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting += by_name[name].step.inputs
    return [each for each in planned if each.step.name in needed]


def dependents(steps: Iterable[Step], name: str) -> set[str]:
    """Return the steps that need the step `name`, itself included; each comes after those that it needs."""
    found = {name}
    for step in steps:
        if found.intersection(step.inputs):
            found.add(step.name)
    return found


def independent_steps(planned: Sequence[Planned], step: Step) -> list[Step]:
    """Return the steps to make that neither need this step nor are needed by it: those that may run beside it."""
    related = {each.step.name for each in needed_by(planned, step.inputs)}
    related |= dependents((each.step for each in planned), step.name)
    return [each.step for each in planned if each.artifact is None and each.step.name not in related]


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _changes(step: Step, inputs: dict[str, Artifact], workspace: Workspace, waiting: Sequence[str]) -> str:
    """Return what differs from the newest artifact of the step in configuration, inputs and version; "" for nothing."""
    last = workspace.newest(step.name)
    if last is None:
        return "never made here"
    before, after = flat(last.manifest["config"]), flat(masked(step.config))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    changed = [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys]
    old = last.manifest["inputs"]
    changed += [f"new {name}" for name, made in inputs.items() if old.get(name, {}).get("digest") != made.digest]
    changed += [f"new {name}" for name in waiting if name not in old]
    changed += [f"without {name}" for name in old if name not in step.inputs]
    if last.manifest["version"] != step.kind.version:
        changed.append(f"version {last.manifest['version']} -> {step.kind.version}")
    return "; ".join(changed)
