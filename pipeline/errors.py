"""What can go wrong, by whose hand it is mended, and the exit code of the command.

MustError
├── ConfigError   2   the recipe, an option or the environment: edit and run again
├── DataError     3   files on disk: repair or leave them out, and run again
├── Stopped      75   asked to stop; everything done so far is kept: run again to go on
└── Interrupted   1   a process was ended from outside: begun again, it goes on from what it saved
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
"""The folder of this project: it is installed from there."""
MOST_NAMES = 40
"""An error lists so many names and no more."""


class MustError(Exception):
    """An error of this project: its text quotes the value and says what would have worked."""

    exit_code = 1


class ConfigError(MustError):
    """The recipe, an option or the environment does not fit; what was made before stays."""

    exit_code = 2


class DataError(MustError):
    """A file on disk is not what it should be; the text names the file."""

    exit_code = 3


class Stopped(MustError):
    """A stop was asked for; what was done is on disk and the next run goes on from there."""

    exit_code = 75


class TakenOver(Stopped):
    """The step is another run's by now."""


class Interrupted(MustError):
    """Work ended by no fault of its own: who started it may begin it again, and it goes on from what it saved."""


class LostPeer(Interrupted):
    """Of several processes that work together another one is gone; what ended it is known to itself alone."""


class OutOfMemory(Interrupted):
    """The device's memory ran out where nothing but a new beginning helps, which is then made in smaller pieces."""

    exit_code = 75


def installing(extra: str) -> str:
    """The command that adds an extra of this project to what is installed."""
    return f"uv pip install -e '{PROJECT}[{extra}]'"


@contextlib.contextmanager
def error_context(place: str) -> Iterator[None]:
    """Errors of this project that are raised inside begin with the place they are about."""
    try:
        yield
    except MustError as error:
        raise type(error)(f"{place}: {error}") from error


def require_one_of(value: str, known: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `known`; else raise ConfigError with the nearest name and the others, if many only
    those that are near.
    """
    names = sorted(known)
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    shown = names if len(names) <= MOST_NAMES else difflib.get_close_matches(value, names, n=MOST_NAMES // 2, cutoff=0)
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    raise ConfigError(f"{what} {value!r} is unknown.{guess} Known: {', '.join(shown) or 'none'}{more}.")
