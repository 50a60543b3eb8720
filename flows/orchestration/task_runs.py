"""A run as a Prefect flow: a task run per step.

What is done is known from disk alone. Prefect shows a run and decides nothing, so it caches and keeps no result: a
step found on disk is a task run that ends as `Cached`. Tasks are called, on the threads that follow the steps'
processes, and not submitted: a stop reaches a process by way of its run, never by way of Prefect.

Import this with Prefect's settings in place: Prefect reads them when it is imported (see `session.py`).
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any
from uuid import UUID

import prefect.runtime.flow_run
from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Completed, Failed

from flows.orchestration.fan_out import FanOut
from flows.orchestration.ui import log_warnings, mirror_progress, show_results
from flows.run.run import Run
from flows.run.runners import FAN_OUT_RUNNERS
from flows.run.signals import stop_on_signals
from flows.run.step_runner import Subprocess, run_concurrently
from pipeline.errors import MustError, Stopped
from pipeline.steps.artifact import Artifact, Step

PATIENCE_S = 30.0
"""For Prefect to take down what happened, at the end of a run."""


_body: contextvars.ContextVar[Callable[[], State[Any]]] = contextvars.ContextVar("body")


@flow(persist_result=False, validate_parameters=False)
def selftrain(recipe: str, root: str) -> State[Any]:
    """The whole run. Engines that do a part of it elsewhere send the flow along: it holds nothing but its name."""
    return current_body()


def current_body() -> State[Any]:
    """What the flow run that is being started is to do."""
    return _body.get()()


def run_as_flow(run: Run, steps: TaskRuns, work: Subprocess) -> dict[str, Artifact]:
    """All steps as task runs of one flow run `selftrain`; `steps`, new, tell afterwards what became of them.

    Raises what a step raised, as it raised it, and MustError if Prefect failed before the last step was done.
    """

    failure = ""
    named = selftrain.with_options(flow_run_name=run.folder.name)
    token = _body.set(lambda: steps.conclude(lambda: steps.carry_out(run, work)))
    try:
        state = named(run.recipe.name, str(run.workspace.root), return_state=True)
        failure = state.message or state.name or ""
    except TerminationSignal:  # a SIGTERM in the moments when Prefect's handler is in place
        run.runtime.stop.set()
    except Exception as error:  # whatever went wrong in Prefect, what is on disk counts
        failure = f"{type(error).__name__}: {error}"
        run.event("prefect", error=failure)
    finally:
        _body.reset(token)
    steps.reraise()
    if not steps.artifacts:
        run.runtime.check_stop("Prefect")
        raise MustError(f"Prefect ended the run ({failure}). Run again to go on, or with -o runtime.runner=inline.")
    return steps.artifacts


class TaskRuns:
    """The steps of a run as task runs of the current flow run."""

    def __init__(self) -> None:
        self.flow_run: UUID | None = None
        self.artifacts: dict[str, Artifact] = {}
        self.states: dict[str, State[Any]] = {}
        self.spread: FanOut | None = None
        self.summary = ""
        self._raised: tuple[Exception, TracebackType | None] | None = None

    def carry_out(self, run: Run, work: Subprocess) -> dict[str, Artifact]:
        """All of them, and what is worth a look: to be called in a flow. Raises what a step raises."""
        self.flow_run = UUID(prefect.runtime.flow_run.id)
        if run.recipe.runtime.runner in FAN_OUT_RUNNERS:
            self.spread = FanOut(work, contextvars.copy_context())
            run.work = self.spread.step
        with stop_on_signals(run.runtime.stop):  # Prefect's own handler would end a step anywhere, its state unsaved
            self.artifacts = run_concurrently(run, self.execute, work.at_once)
            show_results(run, self.artifacts)
        self.summary = f"{run.made} steps made, {len(run.planned) - run.made} reused"
        return self.artifacts

    @property
    def ended(self) -> int:
        """How many task runs have come to their end, parts of steps among them."""
        return len(self.states) + (self.spread.done if self.spread else 0)

    def conclude(self, work: Callable[[], object]) -> State[Any]:
        """The state of a flow whose body is `work`, in which these steps are carried out.

        Errors of ours are told by their text; others are raised, for Prefect to tell by their traceback.
        """
        try:
            work()
        except Stopped as stopped:
            return Cancelled(message=str(stopped))
        except MustError as error:
            return Failed(name="Failed" if self.states else "Refused", message=str(error))
        return Completed(message=self.summary)

    def execute(self, run: Run, step: Step, inputs: Mapping[str, Artifact]) -> Artifact:
        """One step, its task run drawn behind those of its inputs."""
        obtained: list[Artifact] = []

        @task(name=step.name, task_run_name=step.name, cache_policy=NO_CACHE, persist_result=False)
        def attempt() -> State[Any]:
            try:
                artifact, state = get_or_make(run, step, inputs)
            except Exception as error:
                if self._raised is None:  # what the others raise, when they are stopped, is not the reason
                    self._raised = error, error.__traceback__
                if isinstance(error, Stopped):
                    return Cancelled(message=str(error))
                if isinstance(error, MustError):
                    return Failed(message=str(error))
                raise
            obtained.append(artifact)
            return state

        before = [self.states[name] for name in step.inputs]
        self.states[step.name] = attempt(wait_for=before, return_state=True)
        self.reraise()
        return obtained[0]

    def reraise(self) -> None:
        """Raise what a step raised, with its own traceback: Prefect's frames would be most of it."""
        if self._raised:
            error, trace = self._raised
            raise error.with_traceback(trace)


def get_or_make(run: Run, step: Step, inputs: Mapping[str, Artifact]) -> tuple[Artifact, State[Any]]:
    """The artifact of a step, found or made, and the state that tells which."""
    found = run.reuse(step, inputs)
    if found:
        log_warnings(run, step.name, found)
        return found, Completed(name="Cached", message=f"found on disk: {found}")
    with mirror_progress(run, step.name) as runtime:
        made = run.make(step, inputs, runtime)
    log_warnings(run, step.name, made)
    return made, Completed(message=f"made: {made}")


def wait_until_recorded(steps: TaskRuns, embedded: bool) -> None:
    """Send off what Prefect's client still holds; an embedded server is also given the time to write it down."""
    EventsWorker.drain_all(timeout=PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.suppress(Exception):  # the server may be gone
        while embedded and steps.flow_run and time.monotonic() < deadline:
            if _recorded(steps.flow_run) >= steps.ended:
                break
            time.sleep(0.1)


def _recorded(flow_run: UUID) -> int:
    """How many task runs of a flow run have come to their end in the server's database."""
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])))
    return sum(each.state is not None and each.state.is_final() for each in found)
