"""What can go wrong, by whose hand it is mended, and the exit code of the command.

MustError
├── ConfigError   2   the recipe, an option or the environment: edit and run again
├── DataError     3   files on disk: repair or leave them out, and run again
└── Stopped      75   asked to stop; everything done so far is kept: run again to go on
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MustError(Exception):
    """An error of this project: its text quotes the value and says what would have worked."""

    exit_code = 1


class ConfigError(MustError):
    """The recipe, an option or the environment does not fit; nothing was changed on disk."""

    exit_code = 2


class DataError(MustError):
    """A file on disk is not what it should be; the text names the file."""

    exit_code = 3


class Stopped(MustError):
    """A stop was asked for; what was done is on disk and the next run goes on from there."""

    exit_code = 75


def choose(value: str, known: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `known`; else raise ConfigError with the nearest and all the names."""
    names = sorted(known)
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{what} {value!r} is unknown.{guess} Known: {', '.join(names) or 'none'}.")
