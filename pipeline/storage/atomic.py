"""Atomic writes of local files and folders: the final name appears only when the content is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError

PART_SUFFIX = ".part"
"""Suffix of files that are still being written. Readers of a folder skip them."""


def temporary_path(path: Path) -> Path:
    """Return a hidden path beside `path` to write to first, unique across machines."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PART_SUFFIX}")


def commit(temporary: Path, path: Path) -> None:
    """Sync a finished file to disk and rename it to `path`."""
    fsync(temporary)
    os.replace(temporary, path)


def fsync(path: Path) -> None:
    """Wait until the content of a file is safely on disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Name the file in the system's errors from writing to it, which say nothing of where."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write, renamed to `path` at the end; after an error it is deleted and `path` unchanged.

    >>> with atomic_write(path) as temporary:
    ...     temporary.write_bytes(data)
    """
    temporary = temporary_path(path)
    try:
        with name_in_errors(path):
            yield temporary
            commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_absent(folder: Path) -> None:
    """Raise ConfigError unless `folder` is absent or an empty folder."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder}: is a file or a link, not a folder; name another folder.")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: already exists and is not empty; name another folder, or remove it.")


def check_new_file(*files: Path) -> None:
    """Raise ConfigError with the first of these files that is there already."""
    for file in files:
        if os.path.lexists(file):
            raise ConfigError(f"{file}: already exists; name another file, or remove it.")


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, renamed to `folder` (absent or empty) at the end and deleted after an error.

    Its files are not synced: if the machine itself crashes soon after, some may be empty.
    """
    temporary = temporary_path(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
