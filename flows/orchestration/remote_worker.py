"""What a process of some cluster, or of this machine, does for a run: one part of a step. No Prefect here.

It reaches the run by the root alone: what it reads and writes is there, and so is the word to stop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import threading
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from flows.run.process_setup import set_up_process
from pipeline.errors import MustError
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root

LOOK_S = 2.0
"""Between looks for the word to stop."""


@dataclasses.dataclass(frozen=True)
class WorkItem:
    """A part of a step. Small: the artifacts that it reads are named, by step and fingerprint."""

    root: str
    cache_gb: float
    step: Step
    inputs: Mapping[str, str]
    force: bool
    part: Mapping[str, Any]
    stop: str
    """The file whose being there is the word to stop."""
    machine: Mapping[str, Any]
    """Device, precision and workers, as in Runtime."""


def parts_module(step: Step) -> ModuleType:
    """The module that divides a step's work, and does a part of it."""
    return importlib.import_module(step.kind.parts)


def remaining_parts(step: Step, inputs: Mapping[str, Artifact], force: bool, runtime: Runtime) -> list[dict[str, Any]]:
    """The parts of a step that are still to do."""
    given = Inputs(inputs, runtime, force)
    given = dataclasses.replace(given, previous=Workspace(runtime.root).previous(step, given))
    found: list[dict[str, Any]] = parts_module(step).remaining_parts(step.config, given)
    return found


def execute_part(order: WorkItem) -> dict[str, Any]:
    """One part, here and now. Raises what the work raises, and Stopped once there is the word to stop."""
    set_up_process()
    stop = threading.Event()
    with _heeding(order, stop):
        workspace = Workspace(Root.of(order.root, order.cache_gb))
        runtime = Runtime(workspace.root, stop=stop, **order.machine)
        runtime.check_stop(order.step.name)
        made = {name: workspace.open(name, fingerprint) for name, fingerprint in order.inputs.items()}
        done: dict[str, Any] = parts_module(order.step).do_part(
            order.step.config, Inputs(made, runtime, order.force), order.part
        )
    json.dumps(done)  # a part's result is JSON: it goes from machine to machine
    return done


@contextlib.contextmanager
def _heeding(order: WorkItem, stop: threading.Event) -> Iterator[None]:
    """Set `stop` once there is the word."""
    over = threading.Event()

    def look() -> None:
        with contextlib.suppress(OSError, MustError):  # a store that does not answer: the next time
            if StoragePath.of(order.stop).read_if_exists() is not None:
                stop.set()

    def watch() -> None:
        while not stop.is_set() and not over.wait(LOOK_S):
            look()

    look()
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
