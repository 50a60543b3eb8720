"""Hash the configuration of a step: what of it counts, and what is masked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import mask_credentials


def hash_json(value: Any) -> str:
    """Return the sha256, in hex, of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def masked(value: Any) -> Any:
    """Return a JSON value, copied, with no credentials in its URLs: so it is stored, and so it is hashed."""
    if isinstance(value, str):
        return mask_credentials(value)
    if isinstance(value, Mapping):
        return {key: masked(item) for key, item in value.items()}
    return [masked(item) for item in value] if isinstance(value, list | tuple) else value


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their keys: `source.path`."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}.{key}" if prefix else key)
    return values


def without_key(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a configuration without a key, which may be nested: `source.path`."""
    first, _, rest = key.partition(".")
    left = {name: value for name, value in config.items() if name != first}
    return {**left, first: without_key(config[first], rest)} if rest and first in config else left


def without_locations(config: Mapping[str, Any], keys: Iterable[str]) -> Mapping[str, Any]:
    """Return a configuration without those of these keys that hold an absolute path on this machine."""
    for key in keys:
        value: Any = config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, str) and os.path.isabs(value):
            config = without_key(config, key)
    return config
