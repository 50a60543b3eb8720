"""Shortages of this machine, as of memory, space or open files: told as such, and never as damage to a file."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import NoReturn

from pipeline.errors import MustError, Shortage, first_line

NUMBERS = {
    errno.ENOMEM: "memory",
    errno.ENOSPC: "space",
    errno.EDQUOT: "space",
    errno.EFBIG: "file size",
    errno.EMFILE: "open files",
    errno.ENFILE: "open files",
}
"""What the machine is short of, by the number of a system error."""
TEXTS = {
    "memory": (
        r"can(?:no|'|no )t allocate memory|out of memory|alloc of size|memory allocation error|bad_?alloc"
        r"|size calculation overflowed"
    ),
    "space": r"no space left|disk quota exceeded",
    "file size": r"file too large",
    "open files": r"too many open files",
    "threads": r"can't start new thread|resource temporarily unavailable",
}
"""The same by what libraries in other languages say, which give no number."""
WAYS_OUT = {
    "memory": "Set a smaller batch, image_size, backbone or width, or fewer workers, and run again.",
    "space": "Free some space and run the same command again.",
    "file size": (
        "Raise the limit (`ulimit -f`), or name a --root on a disk that takes larger files (FAT takes up to 4 GB), and "
        "run again."
    ),
    "open files": "Raise the limit (`ulimit -n`), or set fewer workers, and run again.",
    "threads": "Raise the limit (`ulimit -u`), or set fewer workers, and run again.",
}
MOST_MEMORY = 1 << 40
"""More bytes than a file can need at once: it is damaged if it asks for them."""


def shortage_of(error: BaseException) -> str | None:
    """Return what an error says the machine is short of, a key of `WAYS_OUT`; None for other errors."""
    if isinstance(error, MemoryError):
        return "memory"
    number = error.errno if isinstance(error, OSError) else None
    if number is not None:
        return NUMBERS.get(number)
    if isinstance(error, MustError):
        return None
    text = str(error).lower()
    return next((name for name, says in TEXTS.items() if re.search(says, text)), None)


def raise_shortage(error: Exception, file: object) -> None:
    """Raise Shortage if an error from reading `file` says that the machine is short of something."""
    resource = shortage_of(error)
    if resource and (_bytes_asked(error) or 0) < MOST_MEMORY:
        _raise(resource, str(file), "", error)


@contextlib.contextmanager
def explain_shortage(worker: str, disk: object) -> Iterator[None]:
    """Raise Shortage if the machine is short of what a step or another `worker` needs, which writes below `disk`."""
    try:
        yield
    except Exception as error:
        resource = shortage_of(error)
        if resource is None:
            raise
        _raise(resource, worker, f": the disk that holds {disk} is full" if resource == "space" else "", error)


def _raise(resource: str, subject: str, where: str, error: Exception) -> NoReturn:
    asked = _bytes_asked(error)
    amount = f"{asked / 2**30:,.1f} GiB at once" if asked else first_line(error)
    detail = where or f" ({amount})"
    raise Shortage(
        f"{subject}: this machine is short of {resource}{detail}. Finished files are kept. {WAYS_OUT[resource]}"
    ) from error


def _bytes_asked(error: Exception) -> int | None:
    found = re.search(r"allocate (\d+) bytes|alloc of size (\d+)", str(error))
    return int(found[1] or found[2]) if found else None
