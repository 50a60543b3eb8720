"""The devices of this machine: find one, name it, move data to it, and keep its threads from competing."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError

LIBRARY_OUT_OF_MEMORY = re.compile(r"CU(DNN|BLAS)_STATUS_(\w+_)?ALLOC(ATION)?_FAILED")


def find_device(name: str) -> str:
    """Return the device of this name, or for "auto" the fastest kind this machine has: "cuda", "mps" or "cpu".

    Raises ConfigError if the machine does not have it.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [device for device in available if available[device]]
    if name == "auto":
        return usable[0]
    if name not in usable:
        raise ConfigError(
            f"runtime.device is {name!r}, which this machine does not have; usable here: {', '.join(usable[::-1])}."
        )
    return name


def device_name(device: str) -> str:
    """Return the device's name for people: that of the GPU, or of the device with its compute threads."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"


def processor_name() -> str:
    """Return the processor's name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def move_to_device(data: Any, device: str) -> Any:
    """Return the data with the tensors in its dataclasses, mappings, lists and tuples on the device.

    All else is left as it is. Copies to CUDA are asynchronous.
    """
    return map_tensors(data, lambda tensor: tensor.to(device, non_blocking=device == "cuda"))


def map_tensors(data: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the data with the function's result in the place of each tensor, however deep.

    In dataclasses, mappings, lists and tuples; all else is left as it is.
    """
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, Mapping):
        return {key: map_tensors(value, function) for key, value in data.items()}
    if isinstance(data, list | tuple):
        mapped = [map_tensors(value, function) for value in data]
        return type(data)(*mapped) if hasattr(data, "_fields") else type(data)(mapped)  # a named tuple takes its fields
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        names = [field.name for field in dataclasses.fields(data)]
        return dataclasses.replace(data, **{name: map_tensors(getattr(data, name), function) for name in names})
    return data


@contextlib.contextmanager
def allocation_failures() -> Iterator[None]:
    """Raise OutOfMemoryError for what cuDNN and cuBLAS say when the device has no memory for them.

    They have an allocator of their own, and it raises plain RuntimeErrors.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not LIBRARY_OUT_OF_MEMORY.search(str(error)):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Compute with one thread per calling thread inside, so that worker threads don't compete for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
