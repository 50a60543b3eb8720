"""Run the steps of a run: in this process, or in subprocesses, each with GPUs of its own if there are enough."""

from __future__ import annotations

import contextvars
import dataclasses
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import tasks
from flows.plan.plan import Planned, independent_steps
from flows.run.devices import VISIBLE_GPUS, Artifacts, DevicePool, Devices, Environ
from flows.run.processes import LAST_OUTPUT, Call, run_in_process, warm_up
from flows.run.run import Run
from pipeline.errors import Interrupted, OutOfMemory, error_context, require_one_of
from pipeline.recipe.base import BaseConfig
from pipeline.recipe.runtime import RuntimeConfig
from pipeline.recipe.teacher import TeacherConfig
from pipeline.steps import ranks
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import Runtime, usable_cores
from pipeline.steps.workspace import Busy, Workspace
from pipeline.stores.labels import LabelSpace

RETRY_S = 2.0
"""Between attempts at a step that another run is making."""
DEVICES_S = 2.0
"""Between looks at how many steps may run at once."""
STARTING = "starting"
"""The first progress line of a step."""
MAX_RESTARTS = 2
"""Restarts of a step whose process was killed, before the run fails. Those for lack of device memory don't count."""
Models = Mapping[str, BaseConfig]
"""Sections of the recipe that name models, by their place in it."""
Execute = Callable[[Run, Step, Artifacts], Artifact]
"""Makes or reuses the artifact of a step, given the artifacts of its inputs."""


class Gate(Protocol):
    """Says which steps may start beside others."""

    def admit(self, planned: Planned, artifacts: Artifacts, running: int) -> bool:
        """Return True if a step, whose inputs have these artifacts, may start beside so many others."""

    def dismiss(self, name: str) -> None:
        """Hear that a step has ended."""

    def wait_until_checked(self) -> None:
        """Wait until a step may start if none is running."""


class InProcess:
    """Runs steps in this process."""

    def __init__(self, settings: RuntimeConfig, models: Models, trained: Set[str], runtime: Runtime) -> None:
        preflight(settings, models, trained, runtime)

    def get_or_make(self, run: Run, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        """Return the artifact of a step, and True if it was made now."""
        inputs.runtime.progress(step.name, 0.0, STARTING)
        return run.workspace.get_or_make(step, inputs)

    def run_function(self, function: Callable[..., Any], arguments: tuple[Any, ...], runtime: Runtime) -> Any:
        """Run a function that is not a step but needs the same imports: `function(*arguments, runtime)`."""
        return function(*arguments, runtime)


class Subprocess:
    """Runs steps in processes of their own, each with GPUs of its own if there are enough.

    Code is loaded and the preflight done in the background, while early steps, which only read data, are run already.
    Other steps wait for it. If it fails, the run is asked to stop.
    """

    def __init__(self, settings: RuntimeConfig, models: Models, trained: Set[str], runtime: Runtime) -> None:
        warm_up()
        self._settings = settings
        self._devices: Future[Devices] = Future()
        arguments = (preflight, (settings, models, trained), runtime)
        threading.Thread(target=self._find_devices, args=arguments, name="preflight", daemon=True).start()

    def _find_devices(self, function: Callable[..., Any], arguments: tuple[Any, ...], runtime: Runtime) -> None:
        try:
            devices: Devices = self.run_function(function, arguments, runtime)
        except BaseException as error:
            self._devices.set_exception(error)
            runtime.stop.set()
            return
        self._pool = DevicePool(devices)
        self._devices.set_result(devices)

    def wait_until_checked(self) -> None:
        """Wait for the preflight. Raises what it raises."""
        self._devices.result()

    @property
    def refusal(self) -> BaseException | None:
        """The error of the preflight, if it has failed."""
        return self._devices.exception() if self._devices.done() else None

    @property
    def devices(self) -> Devices:
        """The devices of the run; until the preflight has found them, no GPUs."""
        return self._devices.result() if self._devices.done() else Devices([], self._settings)

    def admit(self, planned: Planned, artifacts: Artifacts, running: int) -> bool:
        """Return True if a step may start beside so many others. It then has its GPUs until it is dismissed."""
        if running >= self.devices.concurrency:
            return False
        if planned.step.kind.early or planned.artifact:
            return True
        return self._devices.done() and self._pool.lend(planned.step, artifacts)

    def dismiss(self, name: str) -> None:
        """Take back the GPUs of a step that has ended."""
        if self._devices.done():
            self._pool.give_back(name)

    def get_or_make(self, run: Run, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        """Return the artifact of a step, and True if it was made now. A process that is killed is started again."""
        if not self._begins_early(step):
            self.wait_until_checked()
        self._announce(run, step, inputs)
        restarts = 0
        while True:
            try:
                return self._wait_and_attempt(run, step, inputs)
            except Interrupted as error:
                restarts += not isinstance(error, OutOfMemory)  # each of those halves the microbatches: they end
                inputs = self._prepare_restart(run, step, inputs, error, restarts)

    def _begins_early(self, step: Step) -> bool:
        """Return True for a step that needs neither a device nor torch, while these are still waited for."""
        return step.kind.early and not self._devices.done()

    def _announce(self, run: Run, step: Step, inputs: Inputs) -> None:
        """Say that a step starts, and on which devices."""
        place = "" if step.kind.early or inputs.parts else self.devices.describe(step, inputs.artifacts)
        if place:
            run.log(step.name, f"{STARTING} {place}")
        if not inputs.parts:  # with them it has started long ago
            inputs.runtime.progress(step.name, 0.0, f"{STARTING} {place}".strip())

    @staticmethod
    def _prepare_restart(run: Run, step: Step, inputs: Inputs, error: Interrupted, restarts: int) -> Inputs:
        """Record why a step was interrupted, and return the inputs of the next attempt.

        Raises Stopped if the run is to stop, and the error if this would be one restart too many.
        """
        run.record("killed", step=step.name, error=str(error))
        inputs.runtime.check_stop(step.name)
        if restarts > MAX_RESTARTS:
            raise type(error)(f"{step.name}: {error} What it saved is kept: run again to go on.") from error
        reason, _, _ = str(error).partition(LAST_OUTPUT)
        old = run.workspace.find(step, step.fingerprint(inputs.artifacts))  # once it is gone, `work` is of this attempt
        begins_again = inputs.force and (step.kind.reuses_earlier_work or old is not None)
        run.log(step.name, f"{reason} It {'begins again' if begins_again else 'goes on from what it saved'}.")
        return dataclasses.replace(inputs, force=begins_again)

    def _wait_and_attempt(self, run: Run, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        """Attempt a step as soon as no other run is making it. A single process waits by itself; several raise Busy."""
        while True:
            try:
                return self._attempt(run, step, inputs)
            except Busy as busy:
                inputs.runtime.check_stop(step.name)
                inputs.runtime.progress(step.name, 0.0, f"waits: {busy}")
                time.sleep(RETRY_S)
            artifact = run.reuse(step, inputs.artifacts)
            if artifact:
                return artifact, False

    def _attempt(self, run: Run, step: Step, inputs: Inputs) -> tuple[Artifact, bool]:
        early, devices = self._begins_early(step), self.devices
        environ = {} if early else self._pool.environ(step.name)
        at_once = devices.processes_at_once(step, inputs.artifacts, independent_steps(run.planned, step))
        threads = max(1, usable_cores() // at_once) if at_once > 1 else 0
        arguments = (step, inputs.artifacts, inputs.force, inputs.parts)
        call = Call(_get_or_make, arguments, run.log_path(step.name), environ, threads, needs_torch=not early)
        environs = _rank_environs(devices.processes(step, inputs.artifacts))
        result: tuple[Artifact, bool] = run_in_process(call, inputs.runtime, environs)
        return result

    def run_function(self, function: Callable[..., Any], arguments: tuple[Any, ...], runtime: Runtime) -> Any:
        """Run a function that is not a step but needs the same imports: `function(*arguments, runtime)`."""
        return run_in_process(Call(function, arguments), runtime)


def _get_or_make(
    step: Step, artifacts: Mapping[str, Artifact], force: bool, parts: Sequence[Mapping[str, Any]], runtime: Runtime
) -> tuple[Artifact, bool] | None:
    workspace, inputs = Workspace(runtime.root), Inputs(artifacts, runtime, force, parts)
    if ranks.is_first():
        return workspace.get_or_make(step, inputs)
    workspace.take_part(step, inputs)
    return None


def _rank_environs(count: int) -> list[Environ]:
    """Return the variables that torchrun would set for each of `count` processes on this machine."""
    if count == 1:
        return [{}]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"TORCHELASTIC_RUN_ID": "must", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def preflight(settings: RuntimeConfig, models: Models, trained: Set[str], runtime: Runtime) -> Devices:
    """Check the device and the models of a run before its first step, and return the devices.

    The models at the places `trained` make a training step. Raises ConfigError if a device or a model does not exist,
    or a model fails in its step.
    """
    from pipeline.training.device import find_device  # noqa: PLC0415 - not needed for planning
    from tasks.network import check_head_name  # noqa: PLC0415

    device = find_device(runtime.device)
    devices = find_devices(settings, device)
    for place, section in models.items():
        if isinstance(section, TeacherConfig):
            check_head_name(place.removeprefix("teachers."))
        with error_context(place):
            check_models(section)
            if place in trained:
                try_models(section, device, devices.training_processes, settings.gradient_checkpointing)
    return devices


def find_devices(settings: RuntimeConfig, device: str) -> Devices:
    """Return the GPUs that a run may use; none unless its device is `cuda`. Raises ConfigError if they are too few."""
    import torch  # noqa: PLC0415 - not needed for planning

    visible = os.environ.get(VISIBLE_GPUS, "")
    stated = [name.strip() for name in visible.split(",") if name.strip()]
    found = stated or [str(number) for number in range(torch.cuda.device_count())]
    devices = Devices(found if device == "cuda" else [], settings)
    devices.check()
    return devices


def check_models(section: BaseConfig) -> None:
    """Raise ConfigError if a backbone that a section names is unknown, or its weights are of another model.

    So does a teacher of which a metric is required that its task does not have.
    """
    from pipeline.models.weight_loading import check_backbone  # noqa: PLC0415 - a plan does without torch

    for name, image_size, weights, *_ in section.named_backbones():
        check_backbone(name, image_size, weights)
    if isinstance(section, TeacherConfig) and section.require != "none":
        for metric in section.require:
            require_one_of(metric, tasks.model(LabelSpace(section.task)).better, "require: metric")
    section.check()


def try_models(section: BaseConfig, device: str, processes: int, checkpointed: bool) -> None:
    """Raise ConfigError if a backbone that a section names fails in a forward and a backward pass on the device.

    Some models fail only in training, or with gradient checkpointing, which would come to light hours later.
    """
    from pipeline.models.readout import try_training_step  # noqa: PLC0415 - a plan does without torch

    for backbone in section.named_backbones():
        images = max(1, backbone.images // processes)  # of one process
        is_checkpointed = checkpointed and not backbone.frozen
        try_training_step(backbone.name, backbone.image_size, min(images, 2), device, is_checkpointed)


def in_order(run: Run) -> dict[str, Artifact]:
    """Make or reuse the artifacts of all steps, one after the other on this thread, and return them by step."""
    artifacts: dict[str, Artifact] = {}
    for step in (planned.step for planned in run.planned):
        inputs = {name: artifacts[name] for name in step.inputs}
        artifacts[step.name] = run.reuse(step, inputs) or run.make(step, inputs, run.runtime)
    return artifacts


def run_concurrently(run: Run, execute: Execute, gate: Gate) -> dict[str, Artifact]:
    """Run each step as soon as its inputs are there and it is admitted: first those that come first in the plan.

    A step that is not admitted yet is passed by none, so that one that needs many GPUs has its turn. Returns their
    artifacts by step, in the order of the plan. If a step fails, the others are stopped and save what they have.
    """
    artifacts: dict[str, Artifact] = {}

    def inputs_of(step: Step) -> dict[str, Artifact]:
        return {name: artifacts[name] for name in step.inputs}

    pending = {planned.step.name: planned for planned in run.planned}
    running: dict[Future[Artifact], str] = {}
    with ThreadPoolExecutor(len(run.planned), thread_name_prefix="step") as pool:
        try:
            while pending or running:
                ready = [each for each in pending.values() if artifacts.keys() >= set(each.step.inputs)]
                admitted = itertools.takewhile(lambda each: gate.admit(each, inputs_of(each.step), len(running)), ready)
                for step in (each.step for each in admitted):
                    del pending[step.name]
                    context = contextvars.copy_context()  # Prefect keeps the current flow run there
                    running[pool.submit(context.run, execute, run, step, inputs_of(step))] = step.name
                if not running:
                    gate.wait_until_checked()
                for future in wait(running, DEVICES_S, FIRST_COMPLETED).done:
                    gate.dismiss(running[future])
                    artifacts[running.pop(future)] = future.result()
        except BaseException:
            if not all(future.done() for future in running):
                run.runtime.stop.set()
            raise
    return {planned.step.name: artifacts[planned.step.name] for planned in run.planned}
