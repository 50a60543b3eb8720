"""Do one part of a step, in a process on this machine or on a cluster. No Prefect here.

A worker needs nothing but access to the run's root: it reads its inputs and writes its results there, and stops if it
finds a stop file there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from flows.run.process_setup import set_up_process
from pipeline.errors import MustError
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from pipeline.storage.shortage import explain_shortage

POLL_S = 2.0
"""Between checks for the stop file."""


@dataclasses.dataclass(frozen=True)
class WorkItem:
    """A part of a step to do. Small to send: it names the artifacts that it reads by step and fingerprint."""

    root: str
    cache_gb: float
    step: Step
    inputs: Mapping[str, str]
    force: bool
    part: Mapping[str, Any]
    """One of `remaining_parts`."""
    stop_file: str
    """Path or URL of a file that is written to ask for a stop."""
    settings: Mapping[str, Any]
    """Device, precision and workers, as in Runtime."""


def parts_module(step: Step) -> ModuleType:
    """Import the module that splits a step's work and does a part of it (`StepKind.parts`)."""
    return importlib.import_module(step.kind.parts)


def remaining_parts(
    step: Step, artifacts: Mapping[str, Artifact], force: bool, runtime: Runtime
) -> list[dict[str, Any]]:
    """Return the parts of a step that are still to be done, as JSON."""
    inputs = Inputs(artifacts, runtime, force)
    inputs = dataclasses.replace(inputs, previous=Workspace(runtime.root).previous(step, inputs))
    parts: list[dict[str, Any]] = parts_module(step).remaining_parts(step.config, inputs)
    return parts


def execute_part(item: WorkItem) -> dict[str, Any]:
    """Do one part and return its result, which is JSON.

    Raises Stopped if the stop file is written meanwhile, and no error but MustError and the system's: by any other the
    run knows that the worker died. In both cases it tries again.
    """
    set_up_process()
    stop = threading.Event()

    def poll() -> bool:
        if StoragePath.of(item.stop_file).read_if_exists() is not None:
            stop.set()
        return stop.is_set()

    with polling(poll, POLL_S):
        workspace = Workspace(Root.of(item.root, item.cache_gb))
        runtime = Runtime(workspace.root, stop=stop, **item.settings)
        runtime.check_stop(item.step.name)
        artifacts = {name: workspace.open(name, fingerprint) for name, fingerprint in item.inputs.items()}
        inputs = Inputs(artifacts, runtime, item.force)
        try:
            with explain_shortage(item.step.name, workspace.root.local_path()):
                result: dict[str, Any] = parts_module(item.step).do_part(item.step.config, inputs, item.part)
                json.dumps(result)  # raises here if it can't be sent
        except (MustError, OSError):
            raise
        except Exception as error:
            raise MustError(f"{item.step.name}: a part of it failed.\n{traceback.format_exc()}") from error
    return result


@contextlib.contextmanager
def polling(poll: Callable[[], bool], interval_s: float) -> Iterator[None]:
    """Call `poll` now and, on another thread while inside, every `interval_s` until it returns True."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(interval_s) and not attempt():
            pass

    def attempt() -> bool:
        with contextlib.suppress(OSError, MustError):  # the storage does not answer: try again at the next poll
            return poll()
        return False

    if not attempt():
        threading.Thread(target=follow, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
