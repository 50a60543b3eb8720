"""The devices of this machine: find one, name it, move data to it, and keep its threads from competing."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError


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
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=device == "cuda")
    if isinstance(data, Mapping):
        return {key: move_to_device(value, device) for key, value in data.items()}
    if isinstance(data, list | tuple):
        moved = [move_to_device(value, device) for value in data]
        return type(data)(*moved) if hasattr(data, "_fields") else type(data)(moved)  # a named tuple takes its fields
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        names = [field.name for field in dataclasses.fields(data)]
        return dataclasses.replace(data, **{name: move_to_device(getattr(data, name), device) for name in names})
    return data


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Compute with one thread per calling thread inside, so that worker threads don't compete for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
