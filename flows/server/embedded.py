"""Prefect's server as a child of the run, where the user has none: no set-up, no port to choose, nothing left behind.

The child listens on a free port of the loopback interface and keeps its database under the run's root, where
`PREFECT_HOME=<root>/prefect prefect server start` shows it afterwards. It lives as long as the pipe from its parent is
open, and so ends with the parent, however that ends.

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.steps.runtime import Runtime

PATIENCE_S = 180.0
"""For the server to answer: on a new root it makes its database first, and all of it takes longer on busy cores."""
GOODBYE_S = 10.0
"""For the server to end in order, before it is killed."""
LOGGING_FILE = "logging.yml"
INLINE = "or run without Prefect: -o runtime.runner=inline"

DEFAULT_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(PATIENCE_S),
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    # Task runs reach the database in batches; an interval below 1 makes Prefect 3.8 spin.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
"""Settings of Prefect that hold unless the user's environment says otherwise."""

LOGGING = {
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
"""Prefect's logs go to its pages alone: the terminal is ours, and the root logger stays as Python made it."""


def user_api_url() -> str | None:
    """The address of the API that the user's environment names."""
    return os.environ.get("PREFECT_API_URL") or None


def logging_settings(home: Path) -> dict[str, str]:
    """Where Prefect finds what `write_logging` left, unless the user's environment says how it is to log."""
    chosen = any(name.startswith("PREFECT_LOGGING_") for name in os.environ)
    return {} if chosen else {"PREFECT_LOGGING_SETTINGS_PATH": str(home / LOGGING_FILE)}


def no_proxy_environ() -> dict[str, str]:
    """The environment in which a server of this machine is not asked by way of a proxy."""
    direct = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1")))
    return {"NO_PROXY": direct, "no_proxy": direct}


def prefect_environ(home: Path, url: str | None) -> dict[str, str]:
    """The environment of Prefect for a run: what is decided here and not by the user. `url` is the embedded server's.

    With a server of the user's own (None) its address, key and profile are left as they are.
    """
    decided = DEFAULT_SETTINGS | logging_settings(home)
    if url:
        decided |= {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "profiles.toml")}
        decided["PREFECT_CLIENT_MAX_RETRIES"] = "3"  # a server on this machine that is gone stays gone
    decided = {name: value for name, value in decided.items() if name not in os.environ}
    if url:
        decided |= {"PREFECT_API_URL": url, "PREFECT_PROFILE": "ephemeral", **no_proxy_environ()}
    return decided


@contextmanager
def temporary_environ(changes: Mapping[str, str]) -> Iterator[None]:
    """`os.environ` with changes, while inside."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def answers(url: str) -> bool:
    """Whether a server of this machine answers at once."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Server:
    """The child, as its parent sees it. Made, it is starting; `wait` for it, and `stop` it."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "server.log"
        with socket.create_server(("127.0.0.1", 0)) as listening, open(self.log, "wb") as log:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            environ = os.environ | prefect_environ(home, self.url)
            environ |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
            del environ["PREFECT_API_URL"]
            self._child = subprocess.Popen(
                # -P: a folder called `flows` where the command was given is not ours
                [sys.executable, "-P", "-m", "flows.server.embedded", str(listening.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environ,
                pass_fds=[listening.fileno()],
                start_new_session=True,  # Ctrl-C is the run's to handle, and the server records how it ended
            )

    @property
    def process(self) -> int:
        """The child's process number."""
        return self._child.pid

    def wait(self, runtime: Runtime) -> None:
        """Return once the server answers. ConfigError if it died or says nothing; Stopped if a stop was asked for."""
        began = time.monotonic()
        while True:
            runtime.check_stop("the start of Prefect's server")
            self.check()
            if answers(self.url):
                return
            if time.monotonic() - began > PATIENCE_S:
                raise ConfigError(
                    f"Prefect's server did not answer within {PATIENCE_S:.0f} s; see {self.log}. Try again, {INLINE}."
                )
            time.sleep(0.1)

    def alive(self) -> bool:
        return self._child.poll() is None

    def check(self) -> None:
        """Raise ConfigError, with what it said last, if the child has ended."""
        if not self.alive():
            raise ConfigError(
                f"Prefect's server did not start: {self._last_words()} The whole of it is in {self.log}. "
                f"Install the versions that constraints.txt names, {INLINE}."
            )

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1].rstrip(".") + "." if said else f"it ended with code {self._child.returncode}."

    def stop(self) -> None:
        """End the child: in order if it does so in time."""
        assert self._child.stdin
        self._child.stdin.close()
        try:
            self._child.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def write_logging(home: Path, logging: Mapping[str, Any] = LOGGING) -> None:
    """Leave a logging configuration where `logging_settings` says it is."""
    home.mkdir(parents=True, exist_ok=True)
    (home / LOGGING_FILE).write_text(json.dumps(logging, indent=1), encoding="utf-8")  # JSON is YAML


def serve(descriptor: int) -> None:
    """The child's part: serve Prefect's API on an open socket until standard input ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import uvicorn  # noqa: PLC0415 - the thread is to watch over this import, too

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
    signal.raise_signal(signal.SIGTERM)  # an orderly end, if the server is up
    time.sleep(GOODBYE_S)
    os._exit(1)


def check_user_server() -> None:
    """ConfigError if the server that PREFECT_API_URL names does not answer."""
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - seconds, and the server's process has no use for it

    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem:
        raise ConfigError(
            f"PREFECT_API_URL is {user_api_url()}, which does not answer ({problem}). Start that server, unset the "
            f"variable for a server of the run's own, {INLINE}."
        )


if __name__ == "__main__":
    serve(int(sys.argv[1]))
