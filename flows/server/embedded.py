"""Run Prefect's server as a child process of a run, for users who have none: nothing to set up, nothing left running.

The child listens on a free port of the loopback interface and keeps its database under the run's root;
`PREFECT_HOME=<root>/prefect prefect server start` shows it afterwards. It ends when the pipe from its parent closes,
however the parent ends.

    python -m flows.server.embedded <file descriptor of a listening socket>
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.steps.runtime import Runtime

START_S = 180.0
"""For a server to answer: on a new root it creates its database first, which is slow on busy cores."""
SHUTDOWN_S = 10.0
"""For the server to shut down, before it is killed."""
LOGGING_FILE = "logging.yml"
WITHOUT_PREFECT = "or run without Prefect: -o runtime.runner=inline"

DEFAULT_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(START_S),
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    # Task runs reach the database in batches; Prefect 3.9 rounds an interval below 1 down to 0, and spins.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
"""Environment of Prefect, where the user's does not set these variables."""

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {
        "api": {"class": "prefect.logging.handlers.APILogHandler"},
        "nowhere": {"class": "logging.NullHandler"},
    },
    "loggers": {
        "prefect": {"level": "INFO", "handlers": ["nowhere"], "propagate": False},
        "prefect.flow_runs": {"level": "NOTSET", "handlers": ["api"]},
        "prefect.task_runs": {"level": "NOTSET", "handlers": ["api"]},
    },
}
"""Sends Prefect's logs to its pages only: the terminal shows our progress, and the root logger is left alone."""


def user_api_url() -> str | None:
    """Return PREFECT_API_URL of the user's environment."""
    return os.environ.get("PREFECT_API_URL") or None


def logging_settings(home: Path) -> dict[str, str]:
    """Return the environment that makes Prefect read the file of `write_logging`; empty if the user configures it."""
    chosen = any(name.startswith("PREFECT_LOGGING_") for name in os.environ)
    return {} if chosen else {"PREFECT_LOGGING_SETTINGS_PATH": str(home / LOGGING_FILE)}


def own_server_environ(url: str) -> dict[str, str]:
    """Return the environment in which Prefect uses a server on this machine, without a proxy or the user's profile."""
    direct = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1")))
    return {"PREFECT_API_URL": url, "PREFECT_PROFILE": "ephemeral", "NO_PROXY": direct, "no_proxy": direct}


def prefect_environ(home: Path, url: str | None) -> dict[str, str]:
    """Return the environment of Prefect for a run; variables that the user sets are left out.

    Args:
        home: Folder for Prefect's files.
        url: API of the embedded server; None for the user's own server, whose address, key and profile are kept.
    """
    environ = DEFAULT_SETTINGS | logging_settings(home)
    if url:
        environ |= {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "profiles.toml")}
        environ["PREFECT_CLIENT_MAX_RETRIES"] = "3"  # an embedded server that is gone does not come back
    environ = {name: value for name, value in environ.items() if name not in os.environ}
    return environ | (own_server_environ(url) if url else {})


@contextmanager
def temporary_environ(changes: Mapping[str, str]) -> Iterator[None]:
    """Apply changes to `os.environ` while inside."""
    before = {name: os.environ[name] for name in changes if name in os.environ}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in changes:
            os.environ.pop(name, None)
        os.environ.update(before)


def answers(url: str, timeout_s: float = 1.0) -> bool:
    """Return True if a server on this machine answers in time. If nothing listens there, it is False at once."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy
    try:
        with opener.open(f"{url}/health", timeout=timeout_s) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class Server:
    """The child process, which starts when this is created.

    Example:
        server = Server(home)
        server.wait(runtime)
        server.stop()
    """

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "server.log"
        with socket.create_server(("127.0.0.1", 0)) as listening, open(self.log, "wb") as log:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            environ = os.environ | prefect_environ(home, self.url)
            environ |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
            del environ["PREFECT_API_URL"]
            self._child = subprocess.Popen(
                # -P: don't import a folder called `flows` in the current directory
                [sys.executable, "-P", "-m", "flows.server.embedded", str(listening.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environ,
                pass_fds=[listening.fileno()],
                start_new_session=True,  # Ctrl-C reaches the run alone; the server must live to record how it ended
            )

    @property
    def process(self) -> int:
        """The child's pid."""
        return self._child.pid

    def wait(self, runtime: Runtime) -> None:
        """Wait until the server answers. Raises ConfigError if it ends or takes too long, Stopped on a stop request."""

        def ready() -> bool:
            runtime.check_stop("the start of Prefect's server")
            return answers(self.url)

        if wait_until_ready(ready, self.alive):
            return
        code, line = self._child.poll(), last_line(self.log)
        if code is None:
            problem, advice = f"did not answer within {START_S:.0f} s", "Try again"
        elif code > 0 and line:
            problem, advice = f"did not start: {line}", "Install the versions that constraints.txt names"
        else:  # it was killed, or it has not said why it ended
            problem, advice = f"did not start: it ended with code {code}", "Try again"
        raise ConfigError(f"Prefect's server {problem}. Its log is {self.log}. {advice}, {WITHOUT_PREFECT}.")

    def alive(self) -> bool:
        return self._child.poll() is None

    def stop(self) -> None:
        """Shut the child down; kill it if that takes too long."""
        assert self._child.stdin
        self._child.stdin.close()
        try:
            self._child.wait(SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def wait_until_ready(ready: Callable[[], bool], alive: Callable[[], bool]) -> bool:
    """Wait until a service of Prefect is ready. Returns False if it ends before, or is not ready after START_S."""
    deadline = time.monotonic() + START_S
    while not ready():
        if not alive() or time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, without the full stop; "" if there is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip().rstrip(".") for line in reversed(lines) if line.strip()), "")


def write_logging(home: Path, logging: Mapping[str, Any] = LOGGING) -> None:
    """Write a logging configuration for Prefect, which `logging_settings` points to."""
    home.mkdir(parents=True, exist_ok=True)
    (home / LOGGING_FILE).write_text(json.dumps(logging, indent=1), encoding="utf-8")  # JSON is YAML


def serve(descriptor: int) -> None:
    """Serve Prefect's API on an open socket until standard input ends: the child's main function."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import uvicorn  # noqa: PLC0415 - slow: the thread above has to run before

    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        lifespan="on",
        log_level="warning",
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def _end_with_parent() -> None:
    sys.stdin.read()
    signal.raise_signal(signal.SIGTERM)  # uvicorn shuts down, if it is up
    time.sleep(SHUTDOWN_S)
    os._exit(1)


def check_user_server() -> None:
    """Raise ConfigError if the server that PREFECT_API_URL names does not answer."""
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - takes seconds

    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem:
        raise ConfigError(
            f"PREFECT_API_URL is {user_api_url()}, which does not answer ({problem}). Start that server, unset the "
            f"variable for a server of the run's own, {WITHOUT_PREFECT}."
        )


if __name__ == "__main__":
    serve(int(sys.argv[1]))
