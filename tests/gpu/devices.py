"""Tests that run on the CPU, and on a GPU where there is one; what they need to know of a device."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when cuBLAS starts: other tests come first

import pytest
import torch

from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.training import fit
from pipeline.training.autotune import ComputeConfig

if TYPE_CHECKING:
    from tests.conftest import World

GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
)
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
WITHOUT_BOXES = {"loss_weights": {"gabor": 1.0, "boxes": 0.0}}
"""Settings of the world's student: all of its heads but that of detection."""
WARM_STEPS = 2
"""Steps in which libraries start, and which may wait."""


def compute_on(device: str) -> ComputeConfig:
    return ComputeConfig(device, "32", False, {})


def fix_compute(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Measure no formats: steps compute in float32 on the device."""
    for name in ("tasks.training.autotune", "pipeline.training.autotune.autotune"):
        monkeypatch.setattr(name, lambda *_: compute_on(device))


@contextlib.contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Raise RuntimeError where the host waits for a GPU inside. It holds for all threads of the process."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def watch_steps(monkeypatch: pytest.MonkeyPatch, device: str) -> list[int]:
    """Let a training step fail if the host waits in it for the device; return the list of those that did not, growing.

    The first `WARM_STEPS` may wait.
    """
    watched: list[int] = []
    train_step = fit._Trainer._train_step

    def watch(self: Any, batches: Any) -> Any:
        if self.step < WARM_STEPS:
            return train_step(self, batches)
        with no_waiting(device):
            taken = train_step(self, batches)
        watched.append(self.step)
        return taken

    monkeypatch.setattr(fit._Trainer, "_train_step", watch)
    return watched


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Undo at the end what `runtime.deterministic` sets for the whole process."""
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = benchmark


def stop_after(runtime: Runtime, share: float) -> Runtime:
    """Return a runtime that is asked to stop once this share of a step's work is done."""
    own = dataclasses.replace(
        runtime.with_own_stop(), progress=lambda _, done, __: own.stop.set() if done >= share else None
    )
    return own


def runtime_on(device: str, world: World, **settings: Any) -> Runtime:
    return dataclasses.replace(world.runtime, **{"device": device, **settings})


def train_step_of(world: World, step: str, runtime: Runtime, out: Path, **settings: Any) -> Mapping[str, Any]:
    """Run a training step of the world with some settings changed; return its counts."""
    made = world.steps[step]
    section = "student" if step == "student" else "teacher"
    config = {**made.config, section: {**made.config[section], **settings}}
    out.mkdir(parents=True, exist_ok=True)
    counts: Mapping[str, Any] = made.function()(config, Inputs(world.inputs(step).artifacts, runtime), out)
    return counts
