"""Weights and training states on disk: safetensors for tensors, JSON for the rest, nothing that can run code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import DataError
from pipeline.steps.artifact import read_json, write_json
from pipeline.storage.atomic import atomic_write

WEIGHTS, ABOUT = "model.safetensors", "model.json"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Write tensors and a JSON header in one file, whole or not at all. Equal tensors make equal bytes."""
    with atomic_write(path) as part:
        part.touch()
        mode = part.stat().st_mode
        save_file(_apart(tensors), part, metadata={"about": json.dumps(about or {}, sort_keys=True)})
        part.chmod(mode)  # as any file's: safetensors makes one that nobody else on a shared disk could read


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the host, each in memory of its own: safetensors refuses weights that share it (tied ones)."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        atomic_write = tensor.detach().cpu().contiguous()
        place = atomic_write.untyped_storage().data_ptr()
        apart[name] = atomic_write.clone() if place in taken else atomic_write
        taken.add(place)
    return apart


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON header and the tensors that `write_tensors` was given. DataError names a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("about", "{}"))
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path}: not readable as safetensors ({error}).") from error


def save_model(folder: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """A model: `model.safetensors` and, written last, `model.json` that says how to build it."""
    write_tensors(folder / WEIGHTS, weights)
    write_json(folder / ABOUT, about)


def load_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save_model` was given: (about, weights)."""
    about: dict[str, Any] = read_json(folder / ABOUT)
    return about, read_tensors(folder / WEIGHTS)[1]


def flatten(prefix: str, state: Any, tensors: dict[str, Tensor]) -> Any:
    """A nested state of dicts, lists, tensors and plain values as JSON, its tensors moved to `tensors` under names."""
    if isinstance(state, Tensor):
        tensors[prefix] = state
        return {"tensor": prefix}
    if isinstance(state, Mapping):
        return {"items": [[key, flatten(f"{prefix}.{key}", value, tensors)] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        return {"list": [flatten(f"{prefix}.{index}", value, tensors) for index, value in enumerate(state)]}
    return {"value": state}


def unflatten(flat: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `flatten` was given; tuples come back as lists."""
    if "tensor" in flat:
        return tensors[flat["tensor"]]
    if "items" in flat:
        return {key: unflatten(value, tensors) for key, value in flat["items"]}
    if "list" in flat:
        return [unflatten(value, tensors) for value in flat["list"]]
    return flat["value"]


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """A training state: model, optimiser, schedule, position."""
    tensors: dict[str, Tensor] = {}
    about = flatten("state", state, tensors)
    write_tensors(path, tensors, about)


def load_state(path: Path) -> dict[str, Any]:
    """The state that `save_state` wrote. DataError names a damaged file."""
    about, tensors = read_tensors(path)
    try:
        state: dict[str, Any] = unflatten(about, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: a damaged training state ({type(error).__name__}: {error}).") from error
    return state
