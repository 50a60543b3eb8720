"""Runtime of steps: root, device, threads, progress and stop; everything that must not change a result. No torch."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import Stopped
from pipeline.recipe.runtime import Device, Precision, RuntimeConfig
from pipeline.steps import ranks
from pipeline.storage.root import Root

Progress = Callable[[str, float, str], None]
SHARED_SETTINGS = (
    "device",
    "precision",
    "checkpoint_s",
    "deterministic",
    "gradient_checkpointing",
    "shard_optimizer",
)
"""Settings of the recipe that every process of a run has in common."""


def usable_cores() -> int:
    """Return the number of cores that this process may use, which Linux or a container may restrict."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet(step: str, done: float, line: str) -> None:
    """Ignore a progress line."""


def keep_nothing(line: str) -> None:
    """Ignore a line of a log."""


def ignore_event(event: Mapping[str, Any]) -> None:
    """Ignore an event of a run."""


def stopped_in(step: str, force: bool = False) -> Stopped:
    """Return the error for a stop during a step, which may have been made again by `force`."""
    if force:
        return Stopped(f"Stopped in {step}. Run again without --force or --from to go on.")
    return Stopped(f"Stopped in {step}; what is done is kept. Run the same command again to go on.")


class LinkedEvent(threading.Event):
    """Event that counts as set while another is set as well."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()


@dataclasses.dataclass(frozen=True)
class Runtime:
    """The root, device and threads of steps, and the way to report progress and to stop them."""

    root: Root
    device: Device = "auto"
    precision: Precision = "auto"
    workers: int = 0
    """Threads for decoding and encoding; 0 = one per core."""
    progress: Progress = quiet
    """Called as `(step, share done in [0, 1], line)`, often and from any thread."""
    log: Callable[[str], None] = keep_nothing
    """Appends a line to the step's log."""
    on_event: Callable[[Mapping[str, Any]], None] = ignore_event
    """Called with each event of a run as it is recorded, from any thread; not in the processes of steps."""
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set when the run is asked to end. Steps check it between batches, and save a state to resume from."""
    checkpoint_s: float = 60.0
    """Seconds between saved training states."""
    deterministic: bool = False
    """True to choose nothing by measuring it, as two measurements may come out differently."""
    gradient_checkpointing: bool = False
    """True to compute a backbone's blocks again in the backward pass instead of keeping what they compute."""
    shard_optimizer: bool = False
    """True if each of the processes that train together keeps a part of the optimiser's state alone."""

    @classmethod
    def of(cls, settings: RuntimeConfig, root: Root, **more: Any) -> Runtime:
        """Return the runtime of a recipe; keywords replace its settings."""
        return cls(root, **settings.model_dump(include={*SHARED_SETTINGS, "workers"}) | more)

    @property
    def threads(self) -> int:
        """Threads for decoding and encoding: `workers`, or one per usable core that is this process's share."""
        return self.workers or max(1, usable_cores() // ranks.local_count())

    def with_own_stop(self) -> Runtime:
        """Return a copy that stops with this one, and that can be stopped alone."""
        return dataclasses.replace(self, stop=LinkedEvent(self.stop))

    def check_stop(self, step: str) -> None:
        """Raise Stopped if a stop was asked for."""
        if self.stop.is_set():
            raise stopped_in(step)

    @staticmethod
    def software() -> dict[str, Any]:
        """Return the versions of this project and of the libraries that results depend on."""
        return {name: importlib.metadata.version(name) for name in ("must", "torch", "torchvision", "timm", "numpy")}
