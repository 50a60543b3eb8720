"""Checkpoints: safetensors for tensors, JSON for the rest, and nothing that can execute code when it is loaded."""

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
from pipeline.storage.json_text import load_json
from pipeline.storage.shortage import raise_shortage

WEIGHTS, ABOUT = "model.safetensors", "model.json"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Write tensors and a JSON header into one file, atomically. Equal tensors make equal bytes."""
    with atomic_write(path) as part:
        part.touch()
        mode = part.stat().st_mode
        save_file(_unshared(tensors), part, metadata={"about": json.dumps(about or {}, sort_keys=True)})
        part.chmod(mode)  # safetensors makes files that nobody else on a shared disk could read


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the host, tied ones as copies: safetensors refuses tensors that share memory."""
    unshared: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        on_host = tensor.detach().cpu().contiguous()
        storage = on_host.untyped_storage().data_ptr()
        unshared[name] = on_host.clone() if storage in storages else on_host
        storages.add(storage)
    return unshared


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON header and the tensors of a file. Raises DataError, naming the file, if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = load_json((file.metadata() or {}).get("about", "{}"))
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise_shortage(error, path)
        raise DataError(f"{path}: not readable as safetensors ({error}).") from error


def save_model(folder: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Save a model: `model.safetensors` and, written last, `model.json` with what is needed to build it."""
    write_tensors(folder / WEIGHTS, weights)
    write_json(folder / ABOUT, about)


def load_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return (about, weights) of a model that `save_model` saved."""
    about: dict[str, Any] = read_json(folder / ABOUT)
    return about, read_tensors(folder / WEIGHTS)[1]


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Save a training state: a nested structure of mappings, lists, tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    about = _flatten("state", state, tensors)
    write_tensors(path, tensors, about)


def load_state(path: Path) -> dict[str, Any]:
    """Return the state that `save_state` saved; tuples come back as lists. Raises DataError if the file is damaged."""
    about, tensors = read_tensors(path)
    try:
        state: dict[str, Any] = _unflatten(about, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: a damaged training state ({type(error).__name__}: {error}).") from error
    return state


def _flatten(prefix: str, state: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a nested state as JSON, and add its tensors to `tensors` under names that the JSON refers to."""
    if isinstance(state, Tensor):
        tensors[prefix] = state
        return {"tensor": prefix}
    if isinstance(state, Mapping):
        return {"items": [[key, _flatten(f"{prefix}.{key}", value, tensors)] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        return {"list": [_flatten(f"{prefix}.{index}", value, tensors) for index, value in enumerate(state)]}
    return {"value": state}


def _unflatten(flat: Any, tensors: Mapping[str, Tensor]) -> Any:
    if "tensor" in flat:
        return tensors[flat["tensor"]]
    if "items" in flat:
        return {key: _unflatten(value, tensors) for key, value in flat["items"]}
    if "list" in flat:
        return [_unflatten(value, tensors) for value in flat["list"]]
    return flat["value"]
