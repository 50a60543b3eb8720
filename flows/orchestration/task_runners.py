"""Make the Prefect task runner that does the parts of a step: processes of this machine, Ray or Dask."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.run.devices import VISIBLE_GPUS, Environ
from pipeline.errors import PROJECT, ConfigError
from pipeline.recipe.runtime import RuntimeConfig
from pipeline.steps.runtime import usable_cores

if TYPE_CHECKING:
    from distributed import SpecCluster
    from prefect.task_runners import TaskRunner

PACKAGES = ("browser", "evaluation", "flows", "ingest", "pipeline", "selfsup", "student", "tasks", "teachers")
"""The packages that workers import."""
POLL_S = 1.0
"""Between checks that the run still exists."""

# Each task runner is imported where it is used: a run uses one of them.
# ruff: noqa: PLC0415


def worker_environs(settings: RuntimeConfig, gpus: Sequence[str]) -> list[Environ]:
    """Return the variables that give each process that does parts a GPU of its own, as far as there are so many.

    There are `runtime.label_workers`, else one per GPU, else one per core.
    """
    count = settings.label_workers or len(gpus) or usable_cores()
    return [{VISIBLE_GPUS: gpus[number % len(gpus)]} if gpus else {} for number in range(count)]


@contextlib.contextmanager
def task_runner(settings: RuntimeConfig, gpus: Sequence[str]) -> Iterator[TaskRunner[Any]]:
    """Yield the task runner that a recipe names, for a machine with these GPUs."""
    runner = _create(settings, gpus)
    try:
        with runner:
            yield runner
    finally:
        # Prefect could not close its queue if a worker was killed while it wrote there: it left the queue locked, and
        # this process would wait for the lock at its end.
        queue = getattr(runner, "_subprocess_message_queue", None)
        if queue is not None:
            queue.cancel_join_thread()


def _create(settings: RuntimeConfig, gpus: Sequence[str]) -> TaskRunner[Any]:
    environs = worker_environs(settings, gpus)
    count = len(environs)
    if settings.runner == "ray":
        return _ray(settings.address, count)
    if settings.runner == "dask":
        return _dask(settings.address, environs)
    from prefect.task_runners import ProcessPoolTaskRunner

    free: SimpleQueue[Environ] = multiprocessing.get_context("spawn").SimpleQueue()
    for environ in environs:
        free.put(environ)
    return ProcessPoolTaskRunner(max_workers=count, initializer=_initialize_worker, initargs=(os.getpid(), free))


def _initialize_worker(run: int, free: SimpleQueue[Environ]) -> None:
    """Set up a worker process of this machine: it ends with the process `run`, ignores Ctrl-C, and takes a device."""
    threading.Thread(target=_exit_with, args=(run,), daemon=True).start()
    os.setsid()
    os.environ.update(free.get())


def _exit_with(run: int) -> None:
    while os.getppid() == run:
        time.sleep(POLL_S)
    os._exit(1)  # at once: files are written atomically, so nothing half-done stays


def _ray(address: str | None, count: int) -> TaskRunner[Any]:
    from prefect_ray import RayTaskRunner

    _check_current_folder()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    local = {} if address else {"num_cpus": count, "include_dashboard": False}
    return RayTaskRunner(address, init_kwargs={**quiet, **local})


def _check_current_folder() -> None:
    """Raise ConfigError if the current folder, where Ray's workers look first, has a file of a package's name."""
    for name in (*PACKAGES, "cli"):
        for path in (Path(f"{name}.py"), Path(name, "__init__.py")):
            if path.is_file() and path.resolve() != PROJECT / path:
                raise ConfigError(
                    f"runtime.runner: ray's workers import from the current folder first, and {path.resolve()} hides "
                    f"the package {name!r} of must there. Start in another folder, rename it, or choose another runner."
                )


def _dask(address: str | None, environs: Sequence[Environ]) -> TaskRunner[Any]:
    from prefect_dask import DaskTaskRunner

    if address:
        return DaskTaskRunner(address=address)
    return DaskTaskRunner(cluster_class=lambda: local_dask_cluster(environs))


def local_dask_cluster(environs: Sequence[Environ]) -> SpecCluster:
    """Start a Dask cluster on this machine: a worker of one thread for each of `environs`, with these variables set.

    Dask's own `LocalCluster` gives all workers the same variables, and so the same GPU.
    """
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.system import MEMORY_LIMIT

    common = {"host": "127.0.0.1", "dashboard": False}
    worker = {**common, "nthreads": 1, "memory_limit": MEMORY_LIMIT // len(environs), "silence_logs": logging.WARNING}
    return SpecCluster(  # type: ignore[no-untyped-call]
        scheduler={"cls": Scheduler, "options": {**common, "port": 0}},
        workers={
            number: {"cls": Nanny, "options": {**worker, "env": dict(environ)}}
            for number, environ in enumerate(environs)
        },
        silence_logs=logging.WARNING,
    )


def request_gpus(settings: RuntimeConfig) -> AbstractContextManager[None]:
    """Give each part that is submitted inside a GPU of its own, on a Ray cluster that has GPUs."""
    if settings.runner == "ray":
        import ray
        from prefect_ray.context import remote_options

        if ray.cluster_resources().get("GPU"):
            return remote_options(num_gpus=1)
    return contextlib.nullcontext()
