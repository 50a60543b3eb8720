"""Fan a step out: its parts become Prefect task runs on the task runner that the recipe names.

Finished parts are on disk, so a worker that dies costs little: its part is submitted again.

Import this with Prefect's settings in place, like `flows.orchestration.task_runs`.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.orchestration.remote_worker import WorkItem, execute_part, parts_module, polling, remaining_parts
from flows.orchestration.task_runners import request_gpus, task_runner, worker_environs
from flows.run.processes import Call, Killed, run_in_process
from flows.run.run import Run
from flows.run.step_runner import STARTING, Subprocess
from pipeline.errors import MustError
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import SHARED_SETTINGS, usable_cores
from pipeline.steps.workspace import waiting
from pipeline.storage.lock import hold_lock

STOP_FILE = "stop"
"""File in the run's folder that asks its workers to stop."""
FORWARD_S = 0.1
"""Between checks if the run is asked to stop."""
MAX_ATTEMPTS = 3
"""Times that a part is submitted, if its workers are killed."""


@task(name="part", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def part(item: WorkItem, name: str) -> dict[str, Any]:
    """Do a part of a step, on whatever worker this task is run."""
    return execute_part(item)


class FanOut:
    """Runs steps that can be done in parts on many workers, and leaves the others to `subprocess`.

    `context` is that of the flow run. Inside a task run the current context would be sent to the workers with every
    part, and all that it refers to.
    """

    def __init__(self, subprocess: Subprocess, context: contextvars.Context) -> None:
        self.subprocess, self.context = subprocess, context
        self.done = 0
        """Number of parts that are done."""

    def get_or_make(self, run: Run, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        """Return the artifact of a step, and True if it was made now."""
        if not step.kind.parts:
            return self.subprocess.get_or_make(run, step, inputs)
        self.subprocess.wait_until_checked()
        inputs.runtime.progress(step.name, 0.0, STARTING)
        lock = run.workspace.locks / f"{step.name}-parts" / step.fingerprint(inputs.artifacts)
        with hold_lock(lock, waiting(step.name, inputs.runtime), on_lost=inputs.runtime.stop.set):
            with parts_module(step).exclusive(inputs):
                items = self._work_items(run, step, inputs)
                results = self.context.copy().run(self._submit_until_done, run, items)
            inputs.runtime.check_stop(step.name)
            return self.subprocess.get_or_make(run, step, dataclasses.replace(inputs, parts=results))

    def _work_items(self, run: Run, step: Step, inputs: Inputs) -> list[WorkItem]:
        call = Call(remaining_parts, (step, inputs.artifacts, inputs.force), run.log_path(step.name))
        parts = run_in_process(call, inputs.runtime)
        settings = run.recipe.runtime
        workers = len(worker_environs(settings, self.subprocess.devices.gpus))
        cores = 1 if settings.address else max(1, usable_cores() // workers)  # a cluster shares out its own cores
        item = WorkItem(
            root=str(run.workspace.root),
            cache_gb=settings.cache_gb,
            step=step,
            inputs={name: artifact.fingerprint for name, artifact in inputs.artifacts.items()},
            force=inputs.force,
            part={},
            stop_file=str(run.folder / STOP_FILE),
            settings=settings.model_dump(include={*SHARED_SETTINGS}) | {"workers": settings.workers or cores},
        )
        return [dataclasses.replace(item, part=each) for each in parts]

    def _submit_until_done(self, run: Run, items: Sequence[WorkItem]) -> list[dict[str, Any]]:
        """Return the results of all parts. Raises Killed if some are lost with their workers again and again."""
        results: list[dict[str, Any]] = []
        error: BaseException | None = None
        for _ in range(MAX_ATTEMPTS):
            if not items:
                return results
            done, items, error = self._submit(run, items)
            results += done
            if items:
                lost = f"{len(items)} parts were lost with their workers ({type(error).__name__}: {error})"
                run.record("killed", step=items[0].step.name, error=lost)
        if items:
            raise Killed(f"{items[0].step.name}: {lost}. Finished files are kept: run again to go on.") from error
        return results

    def _submit(
        self, run: Run, items: Sequence[WorkItem]
    ) -> tuple[list[dict[str, Any]], list[WorkItem], BaseException | None]:
        """Submit parts once. Returns the results, the parts whose workers died, and the error of the last of those."""
        settings = run.recipe.runtime
        step = items[0].step.name
        results: list[dict[str, Any]] = []
        lost: list[WorkItem] = []
        last_error: BaseException | None = None
        with (
            task_runner(settings, self.subprocess.devices.gpus) as runner,
            request_gpus(settings),
            polling(lambda: _forward_stop(run), FORWARD_S),
            ThreadPoolExecutor(len(items)) as waiters,
        ):
            submitted = {}
            for number, item in enumerate(items, start=1):
                future = runner.submit(part, {"item": item, "name": f"{step} {number} of {len(items)}"})
                submitted[waiters.submit(future.result)] = item
            for waiter in as_completed(submitted):
                try:
                    results.append(waiter.result())
                    self.done += 1
                except MustError:
                    (run.folder / STOP_FILE).write(b"")
                    raise
                except Exception as error:  # the system's, or the task runner's own for a worker that died
                    lost.append(submitted[waiter])
                    last_error = error
                run.runtime.progress(step, len(results) / len(submitted), f"{len(results)} of {len(submitted)} parts")
        return results, lost, last_error


def _forward_stop(run: Run) -> bool:
    """Write the stop file for workers if the run is asked to stop. Returns True if it is."""
    stop = run.runtime.stop.is_set()
    if stop:
        (run.folder / STOP_FILE).write(b"")
    return stop
