"""Helpers for `detect`, by which a source tells `must init` whether a folder is of its kind."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.data.bands import RGB
from pipeline.errors import MustError
from pipeline.sources import BaseSource
from pipeline.storage.path import StoragePath


def is_readable(open_source: Callable[[], BaseSource]) -> bool:
    """Return True if a set can be opened, its classes are known, and there is an image in it.

    For kinds that nothing but trying tells: a CSV file may be about anything.
    """
    return any(_is_readable(open_source, channels) for channels in (RGB, 1))


def _is_readable(open_source: Callable[[], BaseSource], channels: int) -> bool:
    """Return True if there is an image of so many channels; of all numbers but RGB, files have the same suffixes."""
    try:
        source = open_source()
        source.channels = channels
        source.spaces()
        return next(iter(source.records()), None) is not None
    except (MustError, ValueError):
        return False


def has_folders(path: str, *names: str) -> bool:
    """Return True if all these folders lie right in the folder `path`."""
    return all((StoragePath.of(path) / name).is_folder() for name in names)
