"""Find files of weights, and tell them apart by their content, without loading them. No torch."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import ConfigError
from pipeline.recipe.weight_names import HUB, PACKAGE, PUBLISHERS
from pipeline.steps.artifact import hash_file, read_json
from pipeline.steps.config_hash import hash_json

NETWORK = "network-2"
"""The `format` of a `model.json` of a trained network; raised when older weights no longer fit."""
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
"""Name of a package."""


def find_weights(weights: str) -> Path:
    """Return the file: a path, or `package:<module>/<file or glob>`. Raises ConfigError if there is none."""
    if weights.startswith(PACKAGE):
        return _find_in_package(weights)
    path = expand_home(weights)
    if not os.path.isfile(path):  # not path.is_file(), which raises for a name that is too long
        found = "a folder, and no file" if os.path.isdir(path) else "no such file or folder"
        raise ConfigError(f"weights {weights!r}: {found}. A path, package:<module>/<file> or `timm` would work.")
    return path


def network_settings_file(weights: Path) -> Path:
    """Return the path of the `model.json` beside a network's weights."""
    return weights.with_suffix(".json")


def read_network_settings(weights: Path) -> dict[str, Any]:
    """Return the `model.json` beside a network's weights. Raises ConfigError if there is none of this version."""
    file, of = network_settings_file(weights), f"weights {str(weights)!r}"
    if not file.is_file():
        raise ConfigError(f"{of}: no {file.name} beside it, as a trained network has: copy it there as well.")
    settings = read_json(file)
    if not isinstance(settings, dict):
        raise ConfigError(f"{of}: {file.name} holds {settings!r:.40}, not the settings of a trained network.")
    if settings.get("format") != NETWORK:
        raise ConfigError(
            f"{of}: a model of format {settings.get('format')!r:.40}; a network of this version, of format "
            f"{NETWORK!r}, would work."
        )
    if not isinstance(settings.get("backbone"), str) or not isinstance(settings.get("heads"), dict):
        raise ConfigError(f"{of}: {file.name} names no backbone or no heads, as that of a trained network does.")
    return settings


def expand_home(weights: str) -> Path:
    """Return a path with `~` replaced. Raises ConfigError if it names the home of an unknown user."""
    try:
        return Path(weights).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"weights {weights!r}: there is no such user's home; a whole path would work.") from error


def _find_in_package(weights: str) -> Path:
    """Return the first file that matches inside a package's folder. Raises ConfigError if none does."""
    module, _, pattern = weights.removeprefix(PACKAGE).partition("/")
    inside = PurePosixPath(pattern)
    if not MODULE.fullmatch(module) or not inside.name or inside.is_absolute() or ".." in inside.parts:
        raise ConfigError(
            f"weights {weights!r}: write package:<module>/<file>, with the file's path inside the module's folder."
        )
    folder = _package_folder(module)
    if folder is None:
        raise ConfigError(f"weights {weights!r}: the package {module!r} is not installed.")
    try:
        matches = sorted(path for path in folder.glob(pattern) if path.is_file())
    except (OSError, ValueError) as error:
        raise ConfigError(f"weights {weights!r}: {pattern!r} is no path or pattern of one ({error}).") from error
    if not matches:
        raise ConfigError(f"weights {weights!r}: {module} holds no file {pattern!r}.")
    return matches[0]


def _package_folder(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # of a dotted name whose parent is missing or no package
        return None
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def weights_digest(weights: str) -> str:
    """Return a digest of the file's content, or of a folder's files; for what others publish, the name itself."""
    if weights in PUBLISHERS or weights.startswith(HUB):
        return weights
    folder = expand_home(weights)
    if os.path.isdir(folder):
        return hash_json({file.name: _file_digest(file) for file in folder.iterdir() if file.is_file()})[:16]
    return _file_digest(find_weights(weights))[:16]


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _hash_once(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _hash_once(path: Path, size: int, mtime_ns: int) -> str:
    """Hash the file once per process: weights are large, and a recipe names the same ones many times."""
    return hash_file(path)
