"""The exceptions that users meet, who can fix each, and the command's exit code.

MustError
├── ConfigError   2   the recipe, an option or the environment: edit it and run again
├── DataError     3   files on disk: repair them or leave them out, and run again
├── Shortage      4   this machine is short of memory, space, file size, open files or threads: free some, and run again
├── Stopped      75   a stop was requested; all work so far is kept: run again to resume
│   └── TakenOver     another run has taken over the step
└── Interrupted   1   a process was ended from outside: started again, it resumes from what it saved
    ├── LostPeer      another process of the training is gone
    ├── Killed        (flows/run/processes.py) its process was killed
    └── OutOfMemory 75   the device's memory ran out: started again, it goes on with smaller parts of a batch
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
"""The root folder of this project, which is installed from there."""
MOST_NAMES = 40
"""The most names that an error message lists."""
# fsspec's `github://owner:repository@commit` has no password
PASSWORD = re.compile(r"(?<!git)(?<!github)(://[^/\s:@]*):(?!\$\{)[^/\s]+@")
LONE_TOKEN = re.compile(r"(://)[^/\s:@$]{20,}@")
SECRET_PARAMETER = re.compile(
    r"([?&#][\w.-]*(?:token|(?:api|access|secret)[-_]?key|secret|signature|sig|password|passwd|pwd?|auth|credential)=)"
    r"(?!\$\{)[^&\s'\"#]+",
    re.I,
)
MASK = "***"


def mask_credentials(text: str) -> str:
    """Return a text with MASK for the passwords and secret parameters in its URLs, but not for `${VARIABLES}`.

    >>> mask_credentials("can't read https://me:pw@host/a.png?token=f00&page=2")
    "can't read https://me:***@host/a.png?token=***&page=2"
    """
    if "://" not in text:
        return text
    text = LONE_TOKEN.sub(rf"\1{MASK}@", PASSWORD.sub(rf"\1:{MASK}@", text))
    return SECRET_PARAMETER.sub(rf"\1{MASK}", text)


class MustError(Exception):
    """An error of this project. Its text quotes the wrong value and says what would have worked."""

    exit_code = 1

    def __str__(self) -> str:
        return mask_credentials(super().__str__())


class ConfigError(MustError):
    """The recipe, an option or the environment is wrong; what was made before stays."""

    exit_code = 2


class DataError(MustError):
    """A file on disk is wrong; the text names the file."""

    exit_code = 3


class Shortage(MustError):
    """This machine is short of something; what is on disk is whole, and the same command goes on once there is more."""

    exit_code = 4


class Stopped(MustError):
    """A stop was requested; all work so far is on disk and the next run resumes there."""

    exit_code = 75


class TakenOver(Stopped):
    """Another run has taken over the step."""


class Interrupted(MustError):
    """Work ended from outside: its starter may start it again, and it resumes from what it saved."""


class LostPeer(Interrupted):
    """Another process of the group is gone; only that process knows why."""


class OutOfMemory(Interrupted):
    """The device is out of memory and only a restart helps; the restart uses smaller microbatches."""

    exit_code = 75


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this project."""
    return f"uv pip install -e '{PROJECT}[{extra}]'"


@contextlib.contextmanager
def error_context(place: str) -> Iterator[None]:
    """Put `place` in front of the message of every MustError raised inside."""
    try:
        yield
    except MustError as error:
        raise type(error)(f"{place}: {error}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or the name of its type if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def require_one_of(value: str, known: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `known`. Raises ConfigError with the nearest name and at most MOST_NAMES known."""
    names = sorted(known)
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    shown = names if len(names) <= MOST_NAMES else difflib.get_close_matches(value, names, n=MOST_NAMES // 2, cutoff=0)
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    raise ConfigError(f"{what} {value!r} is unknown.{guess} Known: {', '.join(shown) or 'none'}{more}.")
