"""How the steps of a run are worked: in this process, or each in one of its own, one at a time on every device."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import queue
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from flows.run.processes import Call, run_in_process, warm_up
from flows.run.run import Run
from pipeline.errors import ConfigError, Interrupted, OutOfMemory, error_context
from pipeline.recipe.base import BaseConfig
from pipeline.recipe.runtime import RuntimeConfig
from pipeline.recipe.teacher import TeacherConfig
from pipeline.steps import ranks
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import Runtime, usable_cores
from pipeline.steps.workspace import Busy, Workspace

BUSY_S = 2.0
"""Between attempts at what another run is at work on."""
RESTARTS = 2
"""Times that a step whose process was killed goes on from what it saved, before the run gives up."""
Environ = Mapping[str, str]
Models = Mapping[str, BaseConfig]
"""Sections of the recipe that name models, by their place."""
Parts = Sequence[Mapping[str, Any]]
Execute = Callable[[Run, Step, Mapping[str, Artifact]], Artifact]


class InProcess:
    """Everything in this process."""

    at_once = 1

    def __init__(self, settings: RuntimeConfig, models: Models, runtime: Runtime) -> None:
        preflight(settings, models, runtime)

    def step(self, run: Run, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        """The artifact of a step, and whether it was made for it."""
        return run.workspace.get_or_make(step, inputs)

    def other(self, work: Callable[..., Any], arguments: tuple[Any, ...], runtime: Runtime) -> Any:
        """What is no step but loads as much code: `work(*arguments, runtime)`."""
        return work(*arguments, runtime)


class Subprocess:
    """Steps in processes of their own, each on a device that no other one is at work on."""

    def __init__(self, settings: RuntimeConfig, models: Models, runtime: Runtime) -> None:
        warm_up()
        found = self.other(preflight, (settings, models), runtime)
        self.devices: list[Environ] = found
        self.at_once, self.training_processes = len(found), settings.training_processes
        self._free: queue.SimpleQueue[Environ] = queue.SimpleQueue()
        for device in found:
            self._free.put(device)

    def step(self, run: Run, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        """The artifact of a step, and whether it was made for it. A step whose process is killed goes on from what it
        saved.
        """
        device, restarts = self._free.get(), 0
        try:
            while True:
                try:
                    return self._when_free(run, step, inputs, device)
                except Interrupted as ended:
                    restarts += not isinstance(ended, OutOfMemory)  # that gets smaller each time, and comes to an end
                    inputs = self._begin_again(run, step, inputs, ended)
                    if restarts > RESTARTS:
                        raise type(ended)(f"{step.name}: {ended} What it saved is kept: run again to go on.") from ended
        finally:
            self._free.put(device)

    @staticmethod
    def _begin_again(run: Run, step: Step, inputs: Inputs, ended: Interrupted) -> Inputs:
        """Tell how a step was interrupted; returns what it goes on with. Raises Stopped if the run is to stop."""
        run.event("killed", step=step.name, error=str(ended))
        inputs.runtime.check_stop(step.name)
        how, _, _ = str(ended).partition(" It said last")
        run.note(step.name, f"{how} It goes on from what it saved.")
        if step.kind.resumes and run.workspace.find(step, step.fingerprint(inputs.artifacts)) is None:
            return dataclasses.replace(inputs, force=False)  # it has begun anew already
        return inputs

    def _when_free(self, run: Run, step: Step, inputs: Inputs, device: Environ) -> tuple[Artifact, bool]:
        """An attempt, once no other run is at work on the same: one process waits by itself, several can't."""
        while True:
            try:
                return self._attempt(run, step, inputs, device)
            except Busy as other:
                inputs.runtime.check_stop(step.name)
                inputs.runtime.progress(step.name, 0.0, f"waits: {other}")
                time.sleep(BUSY_S)
            found = run.reuse(step, inputs.artifacts)
            if found:
                return found, False

    def _attempt(self, run: Run, step: Step, inputs: Inputs, device: Environ) -> tuple[Artifact, bool]:
        together = _ranks(self.training_processes) if step.kind.trains else [{}]
        sharing = self.at_once * len(together)
        threads = max(1, usable_cores() // sharing) if sharing > 1 else 0
        call = Call(_obtain, (step, inputs.artifacts, inputs.force, inputs.parts), run.log(step.name), device, threads)
        found: tuple[Artifact, bool] = run_in_process(call, inputs.runtime, together)
        return found

    def other(self, work: Callable[..., Any], arguments: tuple[Any, ...], runtime: Runtime) -> Any:
        """What is no step but loads as much code: `work(*arguments, runtime)`, in a process of its own."""
        return run_in_process(Call(work, arguments), runtime)


def _obtain(
    step: Step, artifacts: Mapping[str, Artifact], force: bool, parts: Parts, runtime: Runtime
) -> tuple[Artifact, bool] | None:
    workspace, inputs = Workspace(runtime.root), Inputs(artifacts, runtime, force, parts)
    if ranks.is_first():
        return workspace.get_or_make(step, inputs)
    workspace.take_part(step, inputs)
    return None


def _ranks(count: int) -> list[Environ]:
    """What torchrun would tell each of `count` processes of this machine that train together."""
    if count == 1:
        return [{}]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"TORCHELASTIC_RUN_ID": "must", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def preflight(settings: RuntimeConfig, models: Models, runtime: Runtime) -> list[Environ]:
    """For every step that may be at work at once, the variables that give its process a device of its own.

    Raises ConfigError for what would otherwise stop the run in the middle: a device or a model that is not there.
    """
    import torch  # noqa: PLC0415 - a plan does without

    from pipeline.training.device import find_device  # noqa: PLC0415
    from tasks.network import check_head_name  # noqa: PLC0415

    device = find_device(runtime.device)
    for place, section in models.items():
        if isinstance(section, TeacherConfig):
            check_head_name(place.removeprefix("teachers."))
        with error_context(place):
            check_models(section)
    asked = settings.side_by_side
    if device != "cuda":
        return [{}] * (asked or 1)
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = said.split(",") if said else [str(number) for number in range(torch.cuda.device_count())]
    together = settings.training_processes
    groups = [",".join(names[start : start + together]) for start in range(0, len(names) - together + 1, together)]
    if not groups:
        raise ConfigError(f"runtime.training_processes is {together}, but there are {len(names)} CUDA devices.")
    return [{"CUDA_VISIBLE_DEVICES": groups[number % len(groups)]} for number in range(asked or len(groups))]


def check_models(section: BaseConfig) -> None:
    """Raise ConfigError if a backbone that a section names is not there, or its weights are another model's."""
    from pipeline.models.backbone import check_backbone  # noqa: PLC0415 - a plan does without torch

    for backbone in section.named_backbones():
        check_backbone(*backbone)
    section.check()


def in_order(run: Run, execute: Execute) -> dict[str, Artifact]:
    """All steps, one after the other, on this thread; `execute` makes or finds one."""
    artifacts: dict[str, Artifact] = {}
    for planned in run.planned:
        step = planned.step
        artifacts[step.name] = execute(run, step, {name: artifacts[name] for name in step.inputs})
    return artifacts


def run_concurrently(run: Run, execute: Execute, most: int) -> dict[str, Artifact]:
    """All steps, each as soon as its inputs are there, `most` at once; what they left, in the plan's order. If one
    fails the others save what they have.
    """
    artifacts: dict[str, Artifact] = {}
    left = {planned.step.name: planned.step for planned in run.planned}
    at_work: dict[Future[Artifact], str] = {}
    with ThreadPoolExecutor(most, thread_name_prefix="step") as pool, _stopping_others(run.runtime, at_work):
        while left or at_work:
            ready = [step for step in left.values() if artifacts.keys() >= set(step.inputs)]
            for step in ready[: most - len(at_work)]:
                inputs = {name: artifacts[name] for name in step.inputs}
                context = contextvars.copy_context()  # Prefect's: which run the step is a part of
                at_work[pool.submit(context.run, execute, run, step, inputs)] = step.name
                del left[step.name]
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                artifacts[at_work.pop(future)] = future.result()
    return {planned.step.name: artifacts[planned.step.name] for planned in run.planned}


@contextlib.contextmanager
def _stopping_others(runtime: Runtime, at_work: Collection[Future[Artifact]]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if not all(future.done() for future in at_work):
            runtime.stop.set()
        raise
