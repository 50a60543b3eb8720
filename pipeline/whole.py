"""Files of this machine that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

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
def whole(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` on leaving; after an error it is gone, and `path` is what it was before."""
    part = part_of(path)
    try:
        yield part
        publish(part, path)
    finally:
        part.unlink(missing_ok=True)
