"""Errors of remote storage: one line that says what to do."""

from __future__ import annotations

import errno
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import botocore.exceptions
import botocore.parsers
import pytest
import s3fs
from aiohttp import ClientPayloadError

from cli.doctor import examine
from cli.main import main
from pipeline.errors import PROJECT, ConfigError, DataError, MustError
from pipeline.storage.errors import explain_remote_errors
from pipeline.storage.path import StoragePath
from tests.s3 import guarded

Command = Callable[..., str]


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """Open file systems again, as they keep their credentials."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def no_answer(bucket: str, fresh_clients: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an address where nobody answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    return address


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "{name: r, data: {a: {kind: scenes, count: 2, seed: 1}}, teachers: {g: {kind: analytic}}, pool: [a], "
        "student: {weighting: equal}}"
    )
    return path


@pytest.fixture
def error_line(recipe: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that plans on a root and returns the error line of the command."""

    def command(root: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["plan", str(recipe), "--root", root])
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return command


def test_remote_errors_name_missing_credentials(
    bucket: str, fresh_clients: None, monkeypatch: pytest.MonkeyPatch, error_line: Command
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    line = error_line(f"{bucket}/root")
    assert line.startswith(f"must: {bucket}/root/")
    assert "no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in line


def test_remote_errors_name_a_missing_bucket(bucket: str, error_line: Command) -> None:
    line = error_line("s3://nosuchbucket/root")
    assert line.startswith("must: s3://nosuchbucket/root/")
    assert "there is no such bucket" in line


def test_remote_errors_name_a_storage_without_answer(bucket: str, no_answer: str, error_line: Command) -> None:
    line = error_line(f"{bucket}/root")
    assert f'the storage does not answer (Could not connect to the endpoint URL: "{no_answer}' in line
    assert "run again when it does, or set AWS_ENDPOINT_URL" in line


def test_remote_errors_without_network_are_config_errors(bucket: str, no_answer: str) -> None:
    """Unreadable images are left out of a set (DataError), but not because the storage is away."""
    with pytest.raises(ConfigError, match="does not answer"):
        StoragePath.of(f"{bucket}/a.jpg").read()


@pytest.mark.parametrize("method", [StoragePath.exists, StoragePath.is_folder], ids=["exists", "is_folder"])
def test_exists_and_is_folder_raise_when_the_storage_can_not_tell(
    method: Callable[[StoragePath], bool], bucket: str, no_answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="does not answer"):
        method(StoragePath.of(bucket))
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(ConfigError, match="no credentials"):
        method(StoragePath.of(bucket))


def test_remote_errors_name_denied_access(
    s3: str, bucket: str, fresh_clients: None, monkeypatch: pytest.MonkeyPatch, error_line: Command
) -> None:
    with guarded(s3, ["s3:GetObject"]) as key:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key.name)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key.secret)
        line = error_line(f"{bucket}/root")
        with pytest.raises(ConfigError, match=rf"^{bucket}/root/x: access denied \("):
            StoragePath.of(f"{bucket}/root/x").write(b"")
    assert line.startswith(f"must: {bucket}/root/artifacts/")
    assert "access denied (" in line
    assert "must be allowed to list, read, write and delete there" in line


def test_remote_errors_name_denied_access_of_a_wrong_key(
    s3: str, bucket: str, fresh_clients: None, monkeypatch: pytest.MonkeyPatch, error_line: Command
) -> None:
    with guarded(s3, []):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOSUCHKEY")
        assert "access denied (" in error_line(f"{bucket}/root")


def test_open_errors_name_the_missing_package(monkeypatch: pytest.MonkeyPatch, error_line: Command) -> None:
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert (
        error_line("s3://bucket/root")
        == f"must: s3://bucket/root: needs the extra s3: uv pip install -e '{PROJECT}[s3]'."
    )
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert "needs gcsfs: uv pip install gcsfs" in error_line("gs://bucket/root")


def test_open_errors_quote_an_unknown_protocol(error_line: Command) -> None:
    assert "path 'nosuch://x' can't be opened: Protocol not known: nosuch" in error_line("nosuch://x")


def test_doctor_examine_reports_whether_a_root_answers(bucket: str) -> None:
    def found(root: str) -> tuple[bool | None, str]:
        return next((fine, line) for fine, what, line in examine(root, None) if what == "root")

    fine, line = found(f"{bucket}/root")
    assert fine
    assert line.startswith(f"{bucket}/root: answers; cache in ")
    fine, line = found("s3://nosuchbucket/root")
    assert not fine
    assert "no such bucket" in line


def test_doctor_examine_reports_whether_files_are_created_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = StoragePath.of(f"{bucket}/root")
    pipe_file = place.fs.pipe_file
    assert next(fine for fine, what, _ in examine(str(place), None) if what == "root")
    with monkeypatch.context() as other:
        other.setattr(place.fs, "pipe_file", lambda path, data, mode="": pipe_file(path, data))
        fine, line = next((fine, line) for fine, what, line in examine(str(place), None) if what == "root")
    assert not fine
    assert line.startswith(f"{place}: the storage ignores If-None-Match, so two concurrent runs would")
    assert place.files() == {}, "the probe is gone"


@pytest.mark.parametrize("error", [FileNotFoundError("x"), FileExistsError("x"), OSError(28, "No space left")])
def test_explain_remote_errors_passes_on_missing_existing_and_full_disk(error: OSError) -> None:
    with pytest.raises(type(error)), explain_remote_errors("s3://b/x"):
        raise error


def test_explain_remote_errors_names_the_class_of_any_other_error() -> None:
    with (
        pytest.raises(ConfigError, match=r"^s3://b/x: the storage refused \(KeyError: 'odd'\)\. Finished files"),
        explain_remote_errors("s3://b/x"),
    ):
        raise KeyError("odd")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "Please reduce your request rate."),
        OSError(errno.EREMOTEIO, "We encountered an internal error."),
        OSError(errno.EIO, "Bad Gateway"),
        ClientPayloadError("Response payload is not completed"),
        botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        botocore.parsers.ResponseParserError("no XML"),
    ],
)
def test_explain_remote_errors_takes_transient_errors_for_config_errors(error: Exception) -> None:
    pattern = r"^s3://b/x: the storage .*\. Finished files are kept: run again when"
    with pytest.raises(ConfigError, match=pattern), explain_remote_errors("s3://b/x"):
        raise error


def test_explain_remote_errors_takes_a_missing_range_for_a_data_error() -> None:
    with pytest.raises(DataError, match="the storage refused"), explain_remote_errors("s3://b/x"):
        raise OSError(errno.EINVAL, "The requested range is not satisfiable")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (botocore.exceptions.ProfileNotFound(profile="odd"), r"\(odd\) could not be found. Set AWS_PROFILE to"),
        (botocore.exceptions.NoRegionError(), "You must specify a region. Set AWS_DEFAULT_REGION"),
        (botocore.exceptions.TokenRetrievalError(provider="sso", error_msg="x"), "Log in with `aws sso login`"),
        (botocore.exceptions.SSOTokenLoadError(profile_name="x", error_msg="x"), "Log in with `aws sso login`"),
        (botocore.exceptions.UnauthorizedSSOTokenError(), "Log in with `aws sso login`"),
    ],
)
def test_explain_remote_errors_names_the_missing_setting(error: Exception, line: str) -> None:
    with (
        pytest.raises(ConfigError, match=rf"^s3://b/x: .*{line}.*see docs/how-to/remote.md\.$"),
        explain_remote_errors("s3://b/x"),
    ):
        raise error


class ServiceRequestError(Exception):
    """As Azure's storage raises it without an answer."""


class HttpError(Exception):
    """As Google's storage raises it."""

    code = 503


@pytest.mark.parametrize("error", [ServiceRequestError("no route"), HttpError("backend error")])
def test_explain_remote_errors_takes_those_of_other_clouds_for_no_damage(error: Exception) -> None:
    with pytest.raises(ConfigError, match="Finished files are kept"), explain_remote_errors("gs://b/x"):
        raise error


@pytest.mark.parametrize(
    ("status", "error", "line"),
    [
        (401, ConfigError, "access denied"),
        (403, ConfigError, "access denied"),
        (429, ConfigError, "can't do it just now"),
        (503, ConfigError, "can't do it just now"),
        (418, DataError, "the storage refused"),
    ],
)
def test_remote_errors_of_a_web_server_say_what_it_answered(
    status: int, error: type[MustError], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = type("Handler", (BaseHTTPRequestHandler,), {"do_GET": lambda self: self.send_error(status)})
    handler.do_HEAD = handler.do_GET  # type: ignore[attr-defined]
    monkeypatch.setattr(handler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = StoragePath.of(f"http://127.0.0.1:{server.server_address[1]}/x.parquet")
        for ask in (file.exists, file.read):
            with pytest.raises(error, match=rf"x\.parquet: .*{line}"):
                ask()
        server.shutdown()


def test_remote_errors_name_a_web_server_without_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=r"x\.parquet: the storage does not answer"):
        StoragePath.of(f"http://127.0.0.1:{port}/x.parquet").exists()
