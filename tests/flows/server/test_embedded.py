"""The embedded server: its settings, its start, and its end with the process that started it."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server import embedded
from flows.server.embedded import LOGGING, Server, prefect_environ, temporary_environ, write_logging
from pipeline.errors import ConfigError, Stopped
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from tests.run_fixtures import add_database
from tests.waiting import wait_until_gone

URL = "http://127.0.0.1:4711/api"


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT") or name.lower() == "no_proxy"]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)


def test_prefect_environ_keeps_to_the_root_and_sends_nothing(tmp_path: Path) -> None:
    found = prefect_environ(tmp_path, URL)
    assert found["PREFECT_API_URL"] == URL
    assert found["PREFECT_HOME"] == str(tmp_path)
    assert Path(found["PREFECT_PROFILES_PATH"]).parent == tmp_path
    assert found["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert found["DO_NOT_TRACK"] == "1"
    assert float(found["PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL"]) >= 1
    assert float(found["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"]) == 180


def test_prefect_environ_keeps_what_the_user_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", "/elsewhere")
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "true")
    found = prefect_environ(tmp_path, URL)
    assert not {"PREFECT_HOME", "PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_LOGGING_SETTINGS_PATH"} & set(found)


def test_prefect_environ_keeps_the_profile_of_a_user_server(tmp_path: Path) -> None:
    kept = {"PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "NO_PROXY"}
    assert not kept & set(prefect_environ(tmp_path, None))


def test_prefect_environ_bypasses_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "intranet")
    assert (
        prefect_environ(tmp_path, URL)["no_proxy"] == prefect_environ(tmp_path, URL)["NO_PROXY"] == "intranet,127.0.0.1"
    )


def test_temporary_environ_restores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAS_THERE", "before")
    monkeypatch.delenv("WAS_NOT", raising=False)
    before = dict(os.environ)
    with temporary_environ({"WAS_THERE": "inside", "WAS_NOT": "inside"}):
        assert os.environ["WAS_THERE"] == os.environ["WAS_NOT"] == "inside"
    assert dict(os.environ) == before


def test_logging_prints_nothing_to_the_terminal() -> None:
    assert "root" not in LOGGING
    handlers = LOGGING["handlers"]
    assert isinstance(handlers, dict)
    assert {handler["class"] for handler in handlers.values()} == {
        "prefect.logging.handlers.APILogHandler",
        "logging.NullHandler",
    }


@pytest.fixture(scope="module")
def running(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("root")
    add_database(root, prefect_database)
    home = root / "prefect"
    write_logging(home)
    server = Server(home)
    server.wait(Runtime(Root.of(home)))
    yield server
    server.stop()
    assert not alive(server.process)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_server_answers_on_loopback_with_its_database_at_home(running: Server) -> None:
    assert running.url.startswith("http://127.0.0.1:")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{running.url}/admin/settings") as answer:
        answer_text = answer.read().decode()
    assert str(running.log.parent) in answer_text
    assert (running.log.parent / "prefect.db").exists()


def test_server_log_is_empty(running: Server) -> None:
    assert running.log.read_text("utf-8") == ""


def test_server_wait_raises_at_once_if_prefect_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fastapi.py").write_text("raise ImportError('this fastapi is too new')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = Server(tmp_path / "home")
    wanted = r"this fastapi is too new\. .*server\.log\. Install the versions that constraints\.txt.*runner=inline"
    with pytest.raises(ConfigError, match=wanted):
        server.wait(Runtime(Root.of(tmp_path)))
    server.stop()


@pytest.mark.parametrize("killed", [True, False])
def test_server_wait_says_whether_the_server_ended_or_is_slow(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_S", math.inf if killed else 0)
    monkeypatch.setattr(embedded, "SHUTDOWN_S", 0)
    server = Server(tmp_path)
    if killed:
        os.kill(server.process, signal.SIGKILL)
    problem = "did not start: it ended with code -9" if killed else "did not answer within 0 s"
    with pytest.raises(ConfigError, match=rf"server {problem}\. .*server\.log\. Try again, .*runner=inline"):
        server.wait(Runtime(Root.of(tmp_path)))
    server.stop()


def test_server_wait_can_be_stopped(tmp_path: Path) -> None:
    server, runtime = Server(tmp_path), Runtime(Root.of(tmp_path))
    runtime.stop.set()
    with pytest.raises(Stopped):
        server.wait(runtime)
    server.stop()
    assert not alive(server.process)


@pytest.mark.parametrize("starting", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_server_ends_when_its_parent_is_killed(starting: bool, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from flows.server.embedded import Server\n"
        "from pipeline.storage.root import Root\n"
        "from pipeline.steps.runtime import Runtime\n"
        f"home = Path({str(tmp_path)!r})\n"
        "server = Server(home)\n"
        f"{'' if starting else 'server.wait(Runtime(Root.of(home)))'}\n"
        "print(server.process, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        server = int(parent.stdout.readline())
        assert alive(server)
        parent.kill()
    wait_until_gone(server)
