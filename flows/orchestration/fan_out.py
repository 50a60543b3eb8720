"""The parts of a step as Prefect task runs, on the engine that the recipe names.

What a part does is on disk, whole or not at all, so little is lost with a worker: its part is given out again.

Import this with Prefect's settings in place, like `flows.orchestration.task_runs`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.orchestration.remote_worker import WorkItem, execute_part, parts_module, remaining_parts
from flows.orchestration.task_runners import count_workers, request_gpus, task_runner
from flows.run.processes import Call, Killed, run_in_process
from flows.run.run import Run
from flows.run.step_runner import Subprocess
from pipeline.errors import MustError
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import usable_cores
from pipeline.steps.workspace import waiting
from pipeline.storage.lock import hold_lock
from pipeline.storage.path import StoragePath

ROUNDS = 3
"""Times that a part is given out, if its workers are killed."""


@task(name="part", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def part(order: WorkItem, name: str) -> dict[str, Any]:
    """A part of a step, somewhere."""
    return execute_part(order)


class FanOut:
    """Steps that can be done in parts, by many processes at once; the rest is `apart`'s.

    `context` is the flow's: what submits parts from within a task run would send that along, and all it refers to.
    """

    def __init__(self, apart: Subprocess, context: contextvars.Context) -> None:
        self.apart, self.context = apart, context
        self.done = 0
        """Parts that came to their end."""

    def step(self, run: Run, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        """The artifact of a step, and whether it was made for it."""
        if not step.kind.parts:
            return self.apart.step(run, step, inputs)
        fingerprint = step.fingerprint(inputs.artifacts)
        claim = run.workspace.claims / f"{step.name}-parts" / fingerprint
        with hold_lock(claim, waiting(step.name, inputs.runtime), on_lost=inputs.runtime.stop.set):
            with parts_module(step).exclusive(inputs):
                orders = self._orders(run, step, inputs)
                done = self.context.copy().run(self._give_out, run, orders)
            inputs.runtime.check_stop(step.name)
            return self.apart.step(run, step, dataclasses.replace(inputs, parts=done))

    def _orders(self, run: Run, step: Step, inputs: Inputs) -> list[WorkItem]:
        parts = run_in_process(
            Call(remaining_parts, (step, inputs.artifacts, inputs.force), run.log(step.name)), inputs.runtime
        )
        settings = run.recipe.runtime
        here = settings.address is None
        cores = max(1, usable_cores() // count_workers(settings, self.apart.devices)) if here else 1
        threads = settings.workers or cores
        order = WorkItem(
            root=str(run.workspace.root),
            cache_gb=settings.cache_gb,
            step=step,
            inputs={name: made.fingerprint for name, made in inputs.artifacts.items()},
            force=inputs.force,
            part={},
            stop=str(run.folder / "stop"),
            machine={"device": settings.device, "precision": settings.precision, "workers": threads},
        )
        return [dataclasses.replace(order, part=each) for each in parts]

    def _give_out(self, run: Run, orders: Sequence[WorkItem]) -> list[dict[str, Any]]:
        """What the work on all parts returned."""
        done: list[dict[str, Any]] = []
        for _ in range(ROUNDS):
            if not orders:
                return done
            found, orders, error = self._round(run, orders)
            done += found
            if orders:
                lost = f"{len(orders)} parts were lost with their workers ({type(error).__name__}: {error})"
                run.event("killed", step=orders[0].step.name, error=lost)
        if orders:
            raise Killed(f"{orders[0].step.name}: {lost}. Finished files are kept: run again to go on.")
        return done

    def _round(
        self, run: Run, orders: Sequence[WorkItem]
    ) -> tuple[list[dict[str, Any]], list[WorkItem], BaseException | None]:
        """Give out parts once: what was returned, the parts that were lost, and how the last of them was."""
        settings = run.recipe.runtime
        step = orders[0].step.name
        done: list[dict[str, Any]] = []
        lost: list[WorkItem] = []
        error: BaseException | None = None
        with (
            task_runner(settings, self.apart.devices) as runner,
            request_gpus(settings),
            _passing_on(run),
            ThreadPoolExecutor(len(orders)) as waiting_for,
        ):
            given = {}
            for number, order in enumerate(orders, start=1):
                future = runner.submit(part, {"order": order, "name": f"{step} {number} of {len(orders)}"})
                given[waiting_for.submit(future.result)] = order
            for future in as_completed(given):
                try:
                    done.append(future.result())
                    self.done += 1
                except MustError:
                    StoragePath.of(orders[0].stop).write(b"")
                    raise
                except Exception as found:  # how engines tell of a worker that is gone: each in its own way
                    lost.append(given[future])
                    error = found
                run.runtime.progress(step, len(done) / len(given), f"{len(done)} of {len(given)} parts")
        return done, lost, error


@contextlib.contextmanager
def _passing_on(run: Run) -> Iterator[None]:
    """While inside, a stop of the run becomes the word to stop for those elsewhere."""
    over = threading.Event()

    def listen() -> None:
        while not over.wait(0.1):
            if run.runtime.stop.is_set():
                with contextlib.suppress(OSError, MustError):  # a store that does not answer: the next time
                    (run.folder / "stop").write(b"")
                    return

    listening = threading.Thread(target=listen, daemon=True)
    listening.start()
    try:
        yield
    finally:
        over.set()
