"""Where weights are found, without loading them. No torch."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.steps.artifact import hash_file, hash_json

PUBLISHERS = ("timm", "torchvision")
"""Libraries that download what they publish."""
HUB = "hub:"
"""Before a name on the Hugging Face hub."""


def find_weights(where: str) -> Path:
    """The file that `weights` names: a path, or `package:<module>/<file>`, a file of an installed package."""
    if not where.startswith("package:"):
        path = Path(where).expanduser()
        if not path.is_file():
            raise ConfigError(f"weights {where!r}: no such file. A path, package:<module>/<file> or `timm` would work.")
        return path
    module, _, inside = where.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"weights {where!r}: the package {module!r} is not installed.")
    matches = sorted(Path(found.submodule_search_locations[0]).glob(inside))
    if not matches:
        raise ConfigError(f"weights {where!r}: {module} holds no file {inside!r}.")
    return matches[0]


def weights_digest(where: str) -> str:
    """What tells these weights from others: the hash of the file, or of the folder's files; for what is published
    elsewhere, the name that it has there.
    """
    if where in PUBLISHERS or where.startswith(HUB):
        return where
    folder = Path(where).expanduser()
    if folder.is_dir():
        return hash_json({file.name: _file_digest(file) for file in folder.iterdir() if file.is_file()})[:16]
    return _file_digest(find_weights(where))[:16]


def _file_digest(path: Path) -> str:
    about = path.stat()
    return _hash_once(path, about.st_size, about.st_mtime_ns)


@functools.cache
def _hash_once(path: Path, size: int, mtime_ns: int) -> str:
    """The file's hash: weights are large, and a recipe names the same ones many times."""
    return hash_file(path)
