"""Which device, number format and memory layout training and prediction use: measured on the model itself.

Whether bfloat16 and channels-last pay depends on the processor and on the model (depthwise convolutions can lose by
what dense ones gain), so both are timed for a few steps and the choice is kept beside the artifacts: the same root
makes the same choice again on such a processor, with however many threads, and with it the same numbers.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.steps.artifact import as_json, hash_json, parse_json
from pipeline.steps.runtime import Runtime

Format = Literal["32", "bf16"]
Module = TypeVar("Module", bound=nn.Module)
REPEATS = 3


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a model is run, and the milliseconds per call that were measured for each way (none if it was told)."""

    device: str
    precision: Format
    channels_last: bool
    measured_ms: dict[str, float]

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def describe(self) -> dict[str, Any]:
        """The choice as JSON, for manifests and the report."""
        return dataclasses.asdict(self)

    def place(self, module: Module) -> Module:
        """The module on this device, in this layout."""
        return module.to(self.device).to(memory_format=self.memory_format)

    def autocast(self) -> torch.autocast:
        """The context that forward passes run in. Fabric's own mixed precision would also round a batch's labels."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def find_device(wanted: str) -> str:
    """The device to use: as told, or the fastest kind there is. ConfigError if it is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        usable = ", ".join(name for name, found in there.items() if found)
        raise ConfigError(f"runtime.device is {wanted!r}, which this machine does not have; usable here: {usable}.")
    return wanted


def device_name(device: str) -> str:
    """What a person would call the device."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"


def processor_name() -> str:
    """The processor as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def autotune(
    runtime: Runtime, about: Any, model: nn.Module, call: Callable[[nn.Module, ComputeConfig], None]
) -> ComputeConfig:
    """The fastest way to run `call` on (a copy of) `model`; measured once per root, model and machine.

    `about` is JSON that tells this model and use from others. `call` does the work that is to be fast, for example
    a forward and a backward pass, on a model already laid out. A way that runs out of memory is not taken.
    """
    device = find_device(runtime.device)
    formats: list[Format] = ["32", "bf16"] if runtime.precision == "auto" else [runtime.precision]
    machine = [torch.cuda.get_device_name() if device == "cuda" else device, processor_name(), torch.__version__]
    memo = runtime.root / f"machine/{hash_json([about, *machine, formats])[:16]}.json"
    known = memo.peek()
    if known is not None:
        return ComputeConfig(**parse_json(known, str(memo)))
    candidates = [ComputeConfig(device, form, layout, {}) for form in formats for layout in (False, True)]
    times = {f"{c.precision}{' channels_last' if c.channels_last else ''}": _time(c, model, call) for c in candidates}
    fastest = min(reversed(range(len(candidates))), key=list(times.values()).__getitem__)
    measured = {way: round(ms, 2) for way, ms in times.items() if ms < math.inf}
    choice = dataclasses.replace(candidates[fastest], measured_ms=measured)
    if memo.create(as_json(choice.describe()).encode()):
        return choice
    return ComputeConfig(
        **parse_json(memo.read(), str(memo))
    )  # another process was faster, and may have measured otherwise


def _time(choice: ComputeConfig, model: nn.Module, call: Callable[[nn.Module, ComputeConfig], None]) -> float:
    """Milliseconds; infinitely many where the device's memory ran out."""
    devices = [torch.cuda.current_device()] if choice.device == "cuda" else []
    with torch.random.fork_rng(devices):  # the measurement leaves no trace in what follows
        try:
            trial = choice.place(copy.deepcopy(model))
            return statistics.median([_once(choice, trial, call) for _ in range(REPEATS + 1)][1:])
        except torch.OutOfMemoryError:
            return math.inf


def _once(choice: ComputeConfig, trial: nn.Module, call: Callable[[nn.Module, ComputeConfig], None]) -> float:
    began = time.perf_counter()
    call(trial, choice)
    if choice.device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1000


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """One compute thread for each thread that computes, those started inside included."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
