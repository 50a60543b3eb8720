"""A run as a Prefect flow run, with a task run per step.

Prefect shows a run and decides nothing. What is done is known from disk alone, so Prefect caches nothing and keeps no
results; a step found on disk is a task run that ends as `Cached`. Tasks are called on our own threads rather than
submitted: a stop reaches a step's process through the run, never through Prefect.

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
from flows.orchestration.ui import StepPages, log_warnings, mirror_progress, show_results
from flows.run.run import Run
from flows.run.runner_check import FAN_OUT_RUNNERS
from flows.run.signals import stop_on_signals
from flows.run.step_runner import Subprocess, run_concurrently
from pipeline.errors import MustError, Stopped
from pipeline.steps.artifact import Artifact, Step

FLUSH_S = 30.0
"""For Prefect to record the end of a run."""


_body: contextvars.ContextVar[Callable[[], State[Any]]] = contextvars.ContextVar("body")
"""The work of the flow run that is being started. It can't be an argument of the flow or one of its globals, as Ray and
Dask pickle the flow, and the work can't be pickled.
"""


@flow(persist_result=False, validate_parameters=False)
def selftrain(recipe: str, root: str) -> State[Any]:
    """Run a whole recipe. The work travels in a context variable, because Ray and Dask pickle the flow."""
    return call_body()  # pickled by its name, unlike the variable itself


def call_body() -> State[Any]:
    """Do the work of the flow run that is being started."""
    return _body.get()()


def run_as_flow(run: Run, task_runs: TaskRuns, subprocess: Subprocess) -> dict[str, Artifact]:
    """Run all steps as task runs of a flow run `selftrain`. Returns their artifacts by step.

    Raises what a step raised, unchanged, and MustError if Prefect failed before the last step was done.
    """

    failure = ""
    named = selftrain.with_options(flow_run_name=run.folder.name)
    token = _body.set(lambda: task_runs.final_state(lambda: task_runs.run_steps(run, subprocess)))
    try:
        state = named(run.recipe.name, str(run.workspace.root), return_state=True)
        failure = state.message or state.name or ""
    except TerminationSignal:  # a SIGTERM while Prefect's handler was in place
        run.runtime.stop.set()
    except Exception as error:  # whatever went wrong in Prefect, what is on disk counts
        failure = f"{type(error).__name__}: {error}"
        run.record("prefect", error=failure)
    finally:
        _body.reset(token)
    task_runs.raise_first_error()
    if not task_runs.artifacts:
        run.runtime.check_stop("Prefect")
        raise MustError(f"Prefect ended the run ({failure}). Run again to go on, or with -o runtime.runner=inline.")
    return task_runs.artifacts


class TaskRuns:
    """The steps of a run as task runs of the current flow run."""

    def __init__(self) -> None:
        self.flow_run: UUID | None = None
        self.artifacts: dict[str, Artifact] = {}
        self.states: dict[str, State[Any]] = {}
        self.fan_out: FanOut | None = None
        self.summary = ""
        self._pages = StepPages()
        self._first_error: tuple[Exception, TracebackType | None] | None = None

    def run_steps(self, run: Run, subprocess: Subprocess) -> dict[str, Artifact]:
        """Run all steps and show the results in Prefect. To be called in a flow. Raises what a step raises."""
        self.flow_run = UUID(prefect.runtime.flow_run.id)
        if run.recipe.runtime.runner in FAN_OUT_RUNNERS:
            self.fan_out = FanOut(subprocess, contextvars.copy_context())
            run.get_or_make = self.fan_out.get_or_make
        with stop_on_signals(run.runtime.stop):  # Prefect's own handler would end a step before it saves its state
            try:
                self.artifacts = run_concurrently(run, self.execute, subprocess)
            finally:
                self._pages.wait()
            show_results(run, self.artifacts)
        self.summary = f"{run.made} steps made, {len(run.planned) - run.made} reused"
        return self.artifacts

    @property
    def ended(self) -> int:
        """Number of task runs that have ended, those of parts included."""
        return len(self.states) + (self.fan_out.done if self.fan_out else 0)

    def final_state(self, body: Callable[[], object]) -> State[Any]:
        """Call the body of a flow, which runs these steps, and return the state that the flow run ends in.

        Our own errors become the message of the state. Others are raised: Prefect records their traceback.
        """
        try:
            body()
        except Stopped as stopped:
            return Cancelled(message=str(stopped))
        except MustError as error:
            return Failed(name="Failed" if self.states else "Refused", message=str(error))
        return Completed(message=self.summary)

    def execute(self, run: Run, step: Step, inputs: Mapping[str, Artifact]) -> Artifact:
        """Run one step as a task run that follows those of its inputs."""
        artifacts: list[Artifact] = []

        @task(name=step.name, task_run_name=step.name, cache_policy=NO_CACHE, persist_result=False)
        def attempt() -> State[Any]:
            try:
                artifact, state = reuse_or_make(run, step, inputs)
            except Exception as error:
                if self._first_error is None:  # errors of other steps, which are stopped then, are consequences
                    self._first_error = error, error.__traceback__
                if isinstance(error, Stopped):
                    return Cancelled(message=str(error))
                if isinstance(error, MustError):
                    return Failed(message=str(error))
                raise
            artifacts.append(artifact)
            self._pages.show(run, step.name, {**inputs, step.name: artifact})
            return state

        upstream = [self.states[name] for name in step.inputs]
        self.states[step.name] = attempt(wait_for=upstream, return_state=True)
        self.raise_first_error()
        return artifacts[0]

    def raise_first_error(self) -> None:
        """Raise the first error of a step, if any, with its own traceback: Prefect's frames would be most of it."""
        if self._first_error:
            error, trace = self._first_error
            raise error.with_traceback(trace)


def reuse_or_make(run: Run, step: Step, inputs: Mapping[str, Artifact]) -> tuple[Artifact, State[Any]]:
    """Return the artifact of a step, and the state of its task run, which says if it was found or made."""
    artifact = run.reuse(step, inputs)
    if artifact:
        log_warnings(run, step.name, artifact)
        return artifact, Completed(name="Cached", message=f"found on disk: {artifact}")
    with mirror_progress(run, step.name) as runtime:
        artifact = run.make(step, inputs, runtime)
    log_warnings(run, step.name, artifact)
    return artifact, Completed(message=f"made: {artifact}")


def wait_until_recorded(task_runs: TaskRuns, embedded: bool) -> None:
    """Send what Prefect's client still holds; give an embedded server, which ends next, time to write it down."""
    EventsWorker.drain_all(timeout=FLUSH_S)
    if not embedded or task_runs.flow_run is None:
        return
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[task_runs.flow_run]))
    deadline = time.monotonic() + FLUSH_S
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:  # the server may be gone
        while time.monotonic() < deadline:
            states = [run.state for run in client.read_task_runs(flow_run_filter=of_run)]
            if sum(state is not None and state.is_final() for state in states) >= task_runs.ended:
                break
            time.sleep(0.1)
