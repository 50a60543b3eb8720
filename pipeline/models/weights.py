"""Find files of weights, and tell them apart by their content, without loading them. No torch."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.steps.artifact import hash_file, hash_json

PUBLISHERS = ("timm", "torchvision")
"""Libraries that download the weights they publish."""
NETWORK = "network-2"
"""The `format` of a `model.json` of a trained network; raised when older weights no longer fit."""
HUB = "hub:"
"""Prefix of a name on the Hugging Face hub."""


def find_weights(weights: str) -> Path:
    """Return the file: a path, or `package:<module>/<file or glob>`. Raises ConfigError if there is none."""
    if not weights.startswith("package:"):
        path = expand_home(weights)
        if not path.is_file():
            raise ConfigError(
                f"weights {weights!r}: no such file. A path, package:<module>/<file> or `timm` would work."
            )
        return path
    module, _, pattern = weights.removeprefix("package:").partition("/")
    if not module.isidentifier() or not pattern or pattern.startswith("/") or ".." in Path(pattern).parts:
        raise ConfigError(f"weights {weights!r}: package:<module>/<file in it> would work.")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"weights {weights!r}: the package {module!r} is not installed.")
    matches = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
    if not matches:
        raise ConfigError(f"weights {weights!r}: {module} holds no file {pattern!r}.")
    return matches[0]


def expand_home(path: str) -> Path:
    """Return the path with `~` replaced. Raises ConfigError if it names the home of a user that there is not."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path!r}: there is no such user's home.") from error


def weights_digest(weights: str) -> str:
    """Return a digest of the file's content, or of a folder's files; for what others publish, the name itself."""
    if weights in PUBLISHERS or weights.startswith(HUB):
        return weights
    folder = expand_home(weights)
    if folder.is_dir():
        return hash_json({file.name: _file_digest(file) for file in folder.iterdir() if file.is_file()})[:16]
    return _file_digest(find_weights(weights))[:16]


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _hash_once(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _hash_once(path: Path, size: int, mtime_ns: int) -> str:
    """Hash the file once per process: weights are large, and a recipe names the same ones many times."""
    return hash_file(path)
