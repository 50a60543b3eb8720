"""Services in the background: how they are recorded, started and ended."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.main import main
from flows.server import commands
from flows.server import daemons as module
from flows.server.commands import up
from flows.server.daemons import Service, Services, locked_services, running_server_environ, wait_for
from pipeline.errors import ConfigError
from pipeline.storage.process_id import ProcessId
from tests.waiting import wait_until

URL = "http://127.0.0.1:4711/api"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
IDLE = "import time; print('idle', flush=True); time.sleep(600)"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a home of the test's own, and no server of the user's."""
    for name in [name for name in os.environ if name.startswith("PREFECT")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MUST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[[str], Service]]:
    """Return a function that starts a program as a service, and waits for its first output."""
    children: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> Service:
        log = tmp_path / f"{len(children)}.log"
        with open(log, "wb") as file:
            children.append(subprocess.Popen([sys.executable, "-c", program], stdout=file, stderr=file))
        wait_until(log.read_bytes, children[-1])
        return Service(ProcessId.from_pid(children[-1].pid), time.time(), log)

    yield start
    for child in children:
        child.kill()
        child.wait()


def test_services_read_nothing_from_an_empty_home(home: Path) -> None:
    assert Services.read() == Services(home)
    assert running_server_environ() == {}
    assert not home.exists()


def test_services_written_are_read_again(home: Path, service: Callable[[str], Service]) -> None:
    services = Services(home, URL, server=service(IDLE), deployed="digest")
    home.mkdir()
    services.write()
    assert Services.read() == services
    assert services.server
    assert services.server.alive()
    assert services.page == "http://127.0.0.1:4711"


def test_service_stop_terminates(service: Callable[[str], Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHUTDOWN_S", math.inf)
    idle = service(IDLE)
    idle.stop()
    assert not idle.alive()


def test_service_stop_kills_a_deaf_process(service: Callable[[str], Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHUTDOWN_S", 0.5)
    deaf = service(DEAF)
    deaf.stop()
    assert not deaf.alive()


def test_services_stop_leaves_a_process_that_reuses_the_pid(service: Callable[[str], Service], home: Path) -> None:
    other = service(IDLE)
    before = dataclasses.replace(other, process=dataclasses.replace(other.process, started="1"))
    home.mkdir()
    services = Services(home, URL, worker=before)
    assert not before.alive()
    assert not services.stop("worker")
    assert other.alive()
    assert Services.read().worker is None


def test_up_refuses_another_limit_for_a_running_worker(service: Callable[[str], Service], home: Path) -> None:
    home.mkdir()
    Services(home, URL, worker=service(IDLE), at_once=2).write()
    with pytest.raises(ConfigError, match=r"that is running takes 2 runs at once, not 3: end it with `must down`"):
        up(3, print)


def test_service_from_before_a_reboot_is_not_alive(service: Callable[[str], Service]) -> None:
    running = service(IDLE)
    name = running.process.machine.split()[0]
    before = dataclasses.replace(running, process=dataclasses.replace(running.process, machine=f"{name} earlier"))
    assert not before.alive()


def test_locked_services_refuses_a_home_of_another_machine(home: Path, service: Callable[[str], Service]) -> None:
    remote = dataclasses.replace(service(IDLE), process=ProcessId("elsewhere 1", 1, "1"))
    home.mkdir()
    Services(home, URL, server=remote).write()
    with (
        pytest.raises(ConfigError, match=r"services on elsewhere: `must down` there.*services\.json.*MUST_HOME"),
        locked_services(),
    ):
        pass


def test_wait_for_raises_with_the_last_line_of_a_service_that_ended(service: Callable[[str], Service]) -> None:
    ended = service("print('port 4200 is taken.\\n\\n', flush=True)")
    with pytest.raises(ConfigError, match=r"Prefect's server did not start: port 4200 is taken\. .*0\.log"):
        wait_for("server", ended, lambda: False)


def test_services_environ_of_our_server_ignores_the_users_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "7")
    monkeypatch.setenv("no_proxy", "intranet")
    environ = Services(home, URL).environ()
    assert environ["PREFECT_API_URL"] == URL
    assert Path(environ["PREFECT_HOME"]) == home / "prefect" == Path(environ["PREFECT_PROFILES_PATH"]).parent
    assert environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environ["NO_PROXY"] == "intranet,127.0.0.1"
    assert "PREFECT_WORKER_QUERY_SECONDS" not in environ  # the user's stands


def test_services_environ_of_a_user_server_keeps_the_users_settings(home: Path) -> None:
    assert not {"PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE"} & set(Services(home, URL, own=False).environ())


def test_running_server_environ_needs_a_server_that_answers(
    home: Path, service: Callable[[str], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    Services(home, URL, server=service(IDLE)).write()
    assert running_server_environ() == {}  # nobody answers
    monkeypatch.setattr(module, "answers", lambda url, timeout_s: url == URL)
    assert running_server_environ()["PREFECT_API_URL"] == URL
    monkeypatch.setenv("PREFECT_API_URL", "http://theirs/api")
    assert running_server_environ() == {}


def test_sigint_enabled_for_children_of_a_process_that_ignores_it() -> None:
    program = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with module._sigint_enabled():
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.stdout == "True\n"


def test_free_port_is_the_previous_or_the_next_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(commands, "FIRST_PORT", port)
        found = commands._free_port(f"http://127.0.0.1:{port}/api")
        assert port < found < port + commands.PORTS
    assert commands._free_port(f"http://127.0.0.1:{port}/api") == port


@pytest.mark.parametrize(("stated", "used"), [(f"{URL}/", URL), (URL, f"{URL}/")])
def test_check_server_takes_a_url_with_and_without_a_slash_at_its_end(
    stated: str, used: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", stated)
    monkeypatch.setattr(commands, "check_user_server", lambda: None)
    commands._check_server(Services(home, used, own=False))
    monkeypatch.setenv("PREFECT_API_URL", "http://another/api")
    with pytest.raises(ConfigError, match=f"^PREFECT_API_URL is http://another/api: set it to {used}"):
        commands._check_server(Services(home, used, own=False))


def test_status_says_why_it_knows_no_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    Services(home, URL, own=False).write()
    for command in (["status"], ["status", "--json"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert not ended.value.code
    output = capsys.readouterr().out
    problem = f"PREFECT_API_URL is not set: set it to {URL}, which `must up` used."
    assert f"problem {problem}" in " ".join(output.split())
    assert json.loads(output[output.index("{") :])["problem"] == problem


def test_status_and_down_with_nothing_running(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["status"], ["status", "--json"], ["down"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert not ended.value.code
    output = capsys.readouterr().out
    assert "server       not up; `must up` starts it" in output
    assert json.loads(output[output.index("{") : output.rindex("}") + 1])["server"] is None
    assert output.endswith("Nothing was up.\n")
