"""Files and folders of this machine that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError

PART = ".part"
"""How the name of a file ends that is being written. Whoever reads a folder passes such files over."""


def part_of(path: Path) -> Path:
    """A hidden file beside `path` to write first, of a name that nobody else on any machine comes to."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PART}")


def publish(part: Path, path: Path) -> None:
    """Give what is written its name, once it is safe on the disk."""
    sync(part)
    os.replace(part, path)


def sync(path: Path) -> None:
    """Wait until what is in a file is safe on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` on leaving; after an error it is gone, and `path` is what it was before."""
    part = part_of(path)
    try:
        yield part
        publish(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_absent(folder: Path) -> None:
    """Raise ConfigError if there is something at `folder` other than an empty folder."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder}: there is a file of this name; name another folder.")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is there already and not empty; name another folder, or remove it.")


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `folder`, absent or empty before, on leaving; after an error it is gone.

    Files in it are not waited for until they are safe on the disk: if the machine itself goes down soon after, some may
    be empty.
    """
    part = part_of(folder)
    part.mkdir(parents=True)
    try:
        yield part
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
