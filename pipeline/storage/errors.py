"""What goes wrong between here and storage elsewhere, in one line: what was asked for, and what would have worked."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from pipeline.errors import ConfigError, DataError, MustError, installing

SEE = "docs/how-to/remote.md has the rest"
NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "CredentialRetrievalError",
)
"""What the storages' own libraries raise; they are not loaded, and may not be installed."""
LOG_IN = "Log in with `aws sso login`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
MISSING = {
    "ProfileNotFound": "Set AWS_PROFILE to a profile that is in ~/.aws/config, or unset it",
    "NoRegionError": "Set AWS_DEFAULT_REGION, as to us-east-1",
    "TokenRetrievalError": LOG_IN,
    "SSOTokenLoadError": LOG_IN,
    "UnauthorizedSSOTokenError": LOG_IN,
}
"""What else they raise before they ask anything, each with what would have worked."""
NO_ANSWER = (
    "ConnectionError",
    "HTTPClientError",
    "ClientConnectionError",
    "ClientOSError",
    "TimeoutError",
    "ClientPayloadError",
    "IncompleteRead",
    "IncompleteReadError",
    "ResponseParserError",
)
"""No answer, or one that was cut short."""
PASSING = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EMFILE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
"""Of the system's errors those that say nothing about the file: machine, network or server are short of something."""
PASSING_ELSEWHERE = PASSING | {errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO)}
"""The same of storage elsewhere. s3fs tells by EREMOTEIO that a server failed, and by EIO that it gave an answer of
another kind than S3's: one that stands before it did.
"""
TAKEN, CONTENDED = "PreconditionFailed", "ConditionalRequestConflict"
"""S3's codes for a file that was to be made and is there already, and for one that another is making right now."""
EXTRAS = {
    "s3fs": f"needs the extra s3: {installing('s3')}",
    "gcsfs": "needs gcsfs: uv pip install gcsfs",
    "adlfs": "needs adlfs: uv pip install adlfs",
}


@contextlib.contextmanager
def opening(text: str) -> Iterator[None]:
    """ConfigError if the file system of the path or URL `text` can't be opened: it says what is not installed."""
    try:
        yield
    except ImportError as error:
        missing = next((extra for name, extra in EXTRAS.items() if name in str(error)), _line(error))
        raise ConfigError(f"{text}: {missing}.") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"path {text!r} can't be opened: {_line(error)}") from error


@contextlib.contextmanager
def asking(place: str) -> Iterator[None]:
    """Errors of the storage that `place` is on, as errors of this project.

    A file that is not there, or is already, is left to the caller, and so is a disk of this machine that is full.
    """
    try:
        yield
    except MustError:
        raise
    except Exception as error:
        if _has_no_bucket(error):
            raise ConfigError(
                f"{place}: there is no such bucket ({_line(error)}). Make it, or name another."
            ) from error
        if isinstance(error, FileNotFoundError | FileExistsError) or is_disk_full(error):
            raise
        raise _explained(place, error) from error


@contextlib.contextmanager
def reading(place: object) -> Iterator[None]:
    """What the system tells about a file that is read: ConfigError if it says nothing about the file and may pass,
    else DataError.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{place}: there is no such file") from error
    except OSError as error:
        if error.errno in PASSING:
            raise ConfigError(f"{place}: can't be read just now ({error.strerror}). Run again when it can.") from error
        raise DataError(f"{place}: can't be read ({error.strerror or error})") from error


def code_of(error: MustError) -> str | None:
    """The code that S3 gave for what it refused, of an error from `asking`."""
    told = error.__cause__ and error.__cause__.__cause__
    answer = getattr(told, "response", None) or {}
    code: str | None = answer.get("Error", {}).get("Code")
    return code


def _explained(place: str, error: Exception) -> MustError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & set(NO_CREDENTIALS):
        return ConfigError(
            f"{place}: no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; {SEE}."
        )
    missing = next((MISSING[kind] for kind in kinds if kind in MISSING), None)
    if missing:
        return ConfigError(f"{place}: {_line(error).rstrip('.')}. {missing}; {SEE}.")
    if isinstance(error, PermissionError):
        return ConfigError(
            f"{place}: access denied ({_line(error)}). These credentials must be allowed to list, read, write and "
            f"delete there; {SEE}."
        )
    if kinds & set(NO_ANSWER):
        return ConfigError(
            f"{place}: the storage does not answer ({_line(error)}). What is whole is kept: run again when it does, or "
            "set AWS_ENDPOINT_URL if it is elsewhere."
        )
    if getattr(error, "errno", None) in PASSING_ELSEWHERE:
        return ConfigError(
            f"{place}: the storage can't do it just now ({_line(error)}). What is whole is kept: run again when it can."
        )
    return DataError(f"{place}: the storage refused ({type(error).__name__}: {_line(error)})")


def _has_no_bucket(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) and "bucket does not exist" in str(error)


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def is_disk_full(error: Exception) -> bool:
    """Whether the system said so; libraries that write through other languages tell it in words alone."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


@contextlib.contextmanager
def explaining_full_disk(what: str, disk: object) -> Iterator[None]:
    """DataError where there is no space left on the disk that holds the path `disk` for what `what` writes."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MustError) or not is_disk_full(error):
            raise
        raise DataError(
            f"{what}: the disk that holds {disk} is full. What is whole is kept: free some space and run the same "
            "command again."
        ) from error
