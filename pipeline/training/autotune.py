"""Autotuning: choose number format and memory layout for a model by timing the model itself on this machine.

Whether bfloat16 and channels-last pay depends on the processor and on the model: depthwise convolutions can lose by
what dense ones gain. So all are timed for a few calls, and the choice is kept under the root, because it changes the
numbers: a training that goes on, or is done again on such a machine with any number of threads, computes as before.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.steps.artifact import dump_json, parse_json
from pipeline.steps.config_hash import hash_json
from pipeline.steps.runtime import Runtime
from pipeline.training.device import allocation_failures, find_device, processor_name
from pipeline.training.process_group import ProcessGroup

Format = Literal["32", "bf16", "fp16"]
Module = TypeVar("Module", bound=nn.Module)
REPEATS = 3
"""Timed calls of each candidate, after one that is not counted."""


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Device, number format and memory layout of a model, with the timings that the choice rests on."""

    device: str
    precision: Format
    channels_last: bool
    measured_ms: dict[str, float]
    """Milliseconds per call of each candidate; empty if nothing was measured."""

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def describe(self) -> dict[str, Any]:
        """Return the configuration as JSON, for manifests and the report."""
        return dataclasses.asdict(self)

    def place(self, module: Module) -> Module:
        """Move the module to this device and layout."""
        return module.to(self.device).to(memory_format=self.memory_format)

    def autocast(self) -> torch.autocast:
        """Return the context that forward passes run in: it rounds what the model computes, never a batch's labels."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device, dtype=dtype, enabled=self.precision != "32")


TimedCall = Callable[[nn.Module, ComputeConfig], None]
"""Runs a model, which is placed as the configuration says."""


def autotune(
    runtime: Runtime, key: Any, model: nn.Module, call: TimedCall, group: ProcessGroup | None = None
) -> ComputeConfig:
    """Return the fastest way to run `call` on the model, measured once per root, `key` and machine.

    From here on torch computes, in this process, as `_set_arithmetic` says.

    Args:
        key: JSON that tells this model and its use from others.
        model: copied for each candidate; the model itself does not change, nor does torch's random state.
        call: what is to be fast, for example a forward and a backward pass, on a copy that is placed already. A
            candidate that runs out of the device's memory is not chosen.
        group: of several processes that train together, all call this, and the first one measures.

    If memory does not suffice for any, none is measured, and nothing is kept. It is then the 16 bits of `half_format`
    unless the recipe says otherwise, as half of the memory is what helps, and torch's own layout. float16 comes with
    scaled losses wherever `fit` trains in it, chosen so or measured.

    With `runtime.deterministic` nothing is measured: it is float32 unless the recipe says otherwise.
    """
    _set_arithmetic(runtime)
    if group is None:
        return _measure(runtime, key, model, call)
    return group.broadcast_result(lambda: _measure(runtime, key, model, call))


def _measure(runtime: Runtime, key: Any, model: nn.Module, call: TimedCall) -> ComputeConfig:
    device = find_device(runtime.device)
    if runtime.deterministic:
        return ComputeConfig(device, "32" if runtime.precision == "auto" else runtime.precision, False, {})
    formats: list[Format] = ["32", half_format(device)] if runtime.precision == "auto" else [runtime.precision]
    machine = [torch.cuda.get_device_name() if device == "cuda" else device, processor_name(), torch.__version__]
    memo = runtime.root / f"machine/{hash_json([key, *machine, formats])[:16]}.json"
    known = memo.read_if_exists()
    if known is not None:
        return _parse_choice(known, device, str(memo))
    candidates = [ComputeConfig(device, form, layout, {}) for form in formats for layout in (False, True)]
    times = {f"{c.precision}{' channels_last' if c.channels_last else ''}": _time(c, model, call) for c in candidates}
    measured = {name: round(ms, 2) for name, ms in times.items() if ms < math.inf}
    if not measured:
        return ComputeConfig(device, formats[-1], False, {})
    fastest = min(range(len(candidates)), key=list(times.values()).__getitem__)
    chosen = dataclasses.replace(candidates[fastest], measured_ms=measured)
    if memo.create(dump_json(chosen.describe()).encode()):
        return chosen
    return _parse_choice(memo.read(), device, str(memo))  # another process was first, and may have chosen another


def half_format(device: str) -> Format:
    """Return the number format of 16 bits that the device is fast with: float16 on GPUs before Ampere."""
    return "fp16" if device == "cuda" and torch.cuda.get_device_capability() < (8, 0) else "bf16"


def _parse_choice(text: bytes, device: str, origin: str) -> ComputeConfig:
    """Return what was chosen on this device. Raises DataError, beginning with `origin`, if the text does not tell."""
    match parse_json(text, origin):
        case {
            "device": stated,
            "precision": "32" | "bf16" | "fp16" as precision,
            "channels_last": bool(layout),
            **others,
        }:
            if stated == device:
                measured = others.get("measured_ms")
                return ComputeConfig(device, precision, layout, measured if isinstance(measured, dict) else {})
    raise DataError(f"{origin}: holds {text!r:.60}, and no choice for {device}. Delete it: then it is measured again.")


def autotune_inference(runtime: Runtime, key: Any, model: nn.Module, images: Tensor) -> ComputeConfig:
    """Return the fastest way to run the model forward on images (B, C, S, S); otherwise as `autotune`."""

    def call(placed: nn.Module, compute: ComputeConfig) -> None:
        with torch.inference_mode(), compute.autocast():
            placed(images.to(compute.device).contiguous(memory_format=compute.memory_format))

    return autotune(runtime, key, model, call)


def _set_arithmetic(runtime: Runtime) -> None:
    """Let torch compute, for the rest of this process, as fast as the runtime allows, or the same way every time."""
    if find_device(runtime.device) == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as cuDNN takes for convolutions
        torch.backends.cudnn.benchmark = not runtime.deterministic
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for that
        torch.use_deterministic_algorithms(True, warn_only=True)


def _time(candidate: ComputeConfig, model: nn.Module, call: TimedCall) -> float:
    """Return the median milliseconds of a call; infinity if the device's memory does not suffice."""
    devices = [torch.cuda.current_device()] if candidate.device == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            with allocation_failures():
                placed, times = candidate.place(copy.deepcopy(model)), []
                for _ in range(REPEATS + 1):
                    began = time.perf_counter()
                    call(placed, candidate)
                    if candidate.device == "cuda":
                        torch.cuda.synchronize()
                    times.append((time.perf_counter() - began) * 1000)
                return statistics.median(times[1:])
        except torch.OutOfMemoryError:
            return math.inf


def timed_images(device: str, few: int, images_per_pass: int) -> int:
    """Return how many images to time a pass on.

    On a GPU as many as a real pass has, since a few would measure how fast kernels are started; on other devices `few`,
    where the time grows with the images.
    """
    return images_per_pass if device == "cuda" else few
