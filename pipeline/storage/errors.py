"""Errors of remote and local storage as one-line errors of this project: what failed, and what would have worked."""

from __future__ import annotations

import contextlib
import errno
import tarfile
import zipfile
from collections.abc import Iterator

from pipeline.errors import ConfigError, DataError, MustError, first_line, install_command
from pipeline.storage.shortage import raise_shortage, shortage_of

SEE = "see docs/how-to/remote.md"
# Exceptions are named as text below, as the storage libraries that define them may not be installed.
NO_LOGIN = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "CredentialRetrievalError"}
LOG_IN = "Log in with `aws sso login`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
MISSING_SETTINGS = {
    "ProfileNotFound": "Set AWS_PROFILE to a profile that is in ~/.aws/config, or unset it",
    "NoRegionError": "Set AWS_DEFAULT_REGION, as to us-east-1",
    "TokenRetrievalError": LOG_IN,
    "SSOTokenLoadError": LOG_IN,
    "UnauthorizedSSOTokenError": LOG_IN,
}
"""Errors raised before any request, with the setting that would have worked."""
NO_ANSWER = {
    "ConnectionError",
    "HTTPClientError",
    "ClientConnectionError",
    "ClientOSError",
    "TimeoutError",
    "ClientPayloadError",
    "IncompleteRead",
    "IncompleteReadError",
    "ResponseParserError",
    "ServiceRequestError",
    "ServiceResponseError",
}
"""Errors for no answer, or one that was cut short."""
TRANSIENT = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
"""System errors that are no fault of the file: network or server can't do it for now."""
TRANSIENT_REMOTE = TRANSIENT | {errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO)}
"""The same for remote storage. s3fs raises EREMOTEIO when the server failed, and EIO when the answer is none of S3's,
so that it came from a proxy in front of it.
"""
NOT_FOUND, NOT_ALLOWED, NOT_NOW = (404, 410), (401, 403), (408, 429, 500, 502, 503, 504)
"""Answers of a web server."""
ALREADY_EXISTS, BEING_CREATED = "PreconditionFailed", "ConditionalRequestConflict"
"""S3's error codes for creating a file that exists, and one that another request is creating right now."""
EXTRAS = {
    "s3fs": f"needs the extra s3: {install_command('s3')}",
    "gcsfs": "needs gcsfs: uv pip install gcsfs",
    "adlfs": "needs adlfs: uv pip install adlfs",
}


@contextlib.contextmanager
def explain_open_errors(url: str) -> Iterator[None]:
    """Raise ConfigError if the file system of a path or URL can't be opened, naming the package that is missing."""
    try:
        yield
    except ImportError as error:
        missing = next((extra for name, extra in EXTRAS.items() if name in str(error)), first_line(error))
        raise ConfigError(f"{url}: {missing}.") from error
    except (ValueError, OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ConfigError(f"path {url!r} can't be opened: {first_line(error)}") from error


@contextlib.contextmanager
def explain_remote_errors(url: str) -> Iterator[None]:
    """Turn errors of the storage that `url` is on into ConfigError or DataError.

    FileNotFoundError, FileExistsError and a full local disk pass through: the caller handles them.
    """
    try:
        yield
    except MustError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and "bucket does not exist" in str(error):
            raise ConfigError(
                f"{url}: there is no such bucket ({first_line(error)}). Make it, or name another."
            ) from error
        cause = error.__cause__
        if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and not _is_missing(cause):
            raise _explained(url, cause) from error
        if isinstance(error, FileNotFoundError | FileExistsError) or shortage_of(error) == "space":
            raise
        raise_shortage(error, url)
        raise _explained(url, error) from error


@contextlib.contextmanager
def explain_read_errors(path: object, missing: bool = False) -> Iterator[None]:
    """Turn system errors from reading a file into ConfigError if they may pass, else into DataError.

    `missing`: a file may be missing, so that FileNotFoundError passes through.
    """
    try:
        yield
    except FileNotFoundError as error:
        if missing:
            raise
        raise DataError(f"{path}: there is no such file") from error
    except OSError as error:
        raise_shortage(error, path)
        if error.errno in TRANSIENT:
            raise ConfigError(f"{path}: can't be read just now ({error.strerror}). Run again when it can.") from error
        raise DataError(f"{path}: can't be read ({error.strerror or error})") from error


def s3_error_code(error: MustError) -> str | None:
    """Return S3's error code behind an error from `explain_remote_errors`, None if there is none."""
    cause = error.__cause__ and error.__cause__.__cause__
    response = getattr(cause, "response", None) or {}
    return response.get("Error", {}).get("Code")


def _is_missing(error: Exception) -> bool:
    """Return True if a web server's answer says that a file is missing; fsspec calls a file missing for any error."""
    return _names(error).isdisjoint(NO_ANSWER) and (_status(error) or NOT_FOUND[0]) in NOT_FOUND


def _status(error: Exception) -> int:
    """Return the status that a server answered with, 0 if there is none: aiohttp, Azure and Google name it apart."""
    found = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((int(str(each)) for each in found if str(each).isdecimal()), 0)


def _names(error: Exception) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _explained(url: str, error: Exception) -> MustError:
    names, line, status = _names(error), first_line(error), _status(error)
    if names & NO_LOGIN:
        return ConfigError(
            f"{url}: no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; {SEE}."
        )
    if missing := next((MISSING_SETTINGS[name] for name in names if name in MISSING_SETTINGS), None):
        return ConfigError(f"{url}: {line.rstrip('.')}. {missing}; {SEE}.")
    if isinstance(error, PermissionError) or status in NOT_ALLOWED:
        return ConfigError(
            f"{url}: access denied ({line}). These credentials must be allowed to list, read, write and delete there; "
            f"{SEE}."
        )
    if names & NO_ANSWER:
        return ConfigError(
            f"{url}: the storage does not answer ({line}). Finished files are kept: run again when it does, or set "
            "AWS_ENDPOINT_URL if it is elsewhere."
        )
    if getattr(error, "errno", None) in TRANSIENT_REMOTE or status in NOT_NOW:
        return ConfigError(
            f"{url}: the storage can't do it just now ({line}). Finished files are kept: run again when it can."
        )
    refused = f"{url}: the storage refused ({type(error).__name__}: {line})"
    is_about_file = isinstance(error, OSError | ValueError) or status
    return DataError(refused) if is_about_file else ConfigError(f"{refused}. Finished files are kept: run again.")
