"""The machine a run uses and the line it reports to: everything that must not change a result. No torch."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import Stopped
from pipeline.recipe.runtime import Device, Precision
from pipeline.steps import ranks
from pipeline.storage.root import Root

if TYPE_CHECKING:
    from pipeline.recipe.runtime import RuntimeConfig

Progress = Callable[[str, float, str], None]


def usable_cores() -> int:
    """Cores that this process may use: all of them, or fewer where the system (Linux) or a container says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet(step: str, done: float, line: str) -> None:
    """A progress line that goes nowhere."""


def stopped_in(step: str, force: bool = False) -> Stopped:
    """What tells that a stop was asked for while a step was made, perhaps `force`, though it was there."""
    if force:
        return Stopped(f"Stopped in {step}. Run again without --force or --from to go on.")
    return Stopped(f"Stopped in {step}; what is done is kept. Run the same command again to go on.")


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Where and how steps run; a training state is saved every `checkpoint_s` seconds.

    `progress(step, share done in [0, 1], line)` may be called often and from any thread. `stop` is set when the run
    was asked to end; steps look at it between batches and leave a state to go on from.
    """

    root: Root
    device: Device = "auto"
    precision: Precision = "auto"
    workers: int = 0
    progress: Progress = quiet
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    checkpoint_s: float = 60.0

    @classmethod
    def of(cls, settings: RuntimeConfig, root: Root, **more: Any) -> Runtime:
        """As a recipe says, but for what `more` says."""
        names = ("device", "precision", "workers", "checkpoint_s")
        return cls(root, **{**{name: getattr(settings, name) for name in names}, **more})

    @property
    def threads(self) -> int:
        """Worker threads for decoding and encoding: as asked, else one per core this process may use; processes that
        train together share a machine's.
        """
        return self.workers or max(1, usable_cores() // ranks.local_count())

    def keep(self, *files: Path) -> None:
        """A step has saved these files of its folder, in this order, so that a later attempt can go on from them."""
        self.root.upload(*files)

    def check_stop(self, step: str) -> None:
        """Raise Stopped if a stop was asked for."""
        if self.stop.is_set():
            raise stopped_in(step)

    @staticmethod
    def software() -> dict[str, Any]:
        """Versions of this project and of the libraries a result depends on."""
        return {name: importlib.metadata.version(name) for name in ("must", "torch", "torchvision", "timm", "numpy")}
