"""Start, find and end Prefect's server and a worker in the background.

    <home>/services.json               what is running
    <home>/server.log, worker.log
    <home>/prefect/                    Prefect's own files, such as its database

The home is MUST_HOME or `~/.must`: one per user and machine. The user's own Prefect profile is left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from flows.server import embedded
from flows.server.embedded import answers, last_line, user_api_url, wait_until_ready, write_logging
from pipeline.errors import PROJECT, ConfigError
from pipeline.steps.artifact import write_json
from pipeline.storage.process_id import ProcessId

BUSY_S = 30.0
"""For a running server to answer: the machine may be busy with what the runs do."""
SHUTDOWN_S = 15.0
"""For a service to shut down, before it is killed."""
SERVER_SETTINGS = {
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    # What a run logs is then shown by `prefect deployment run --watch`.
    "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
    "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
}
"""Environment of Prefect beside that of a run, where the user's does not set these variables."""
LOGGING = embedded.LOGGING | {
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": embedded.LOGGING["handlers"] | {"line": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": embedded.LOGGING["loggers"] | {"prefect": {"level": "INFO"}, "prefect.server": {"level": "WARNING"}},
    "root": {"level": "WARNING", "handlers": ["line"]},
}
"""Logs plain lines: Prefect's default console handler kills a run once the worker that read its output is gone."""
Name = Literal["server", "worker"]


@dataclasses.dataclass(frozen=True)
class Service:
    """A process in the background."""

    process: ProcessId
    since: float
    """Unix time of its start."""
    log: Path

    def alive(self) -> bool:
        return self.process.is_local and not self.process.has_ended()

    def stop(self) -> None:
        """Shut it down; kill it if that takes too long."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.alive():
                os.kill(self.process.number, number)
            deadline = time.monotonic() + SHUTDOWN_S
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.1)


@dataclasses.dataclass
class Services:
    """The server and the worker, as services.json records them."""

    home: Path
    url: str = ""
    """API of the server that is used, or was used last."""
    own: bool = True
    """True if that server was started by `must up`."""
    server: Service | None = None
    worker: Service | None = None
    at_once: int = 1
    """Flow runs that the worker takes at a time."""
    deployed: str = ""
    """Digest of the deployments that were registered."""

    @classmethod
    def read(cls) -> Services:
        """Read services.json; nothing is running if it does not exist."""
        home = Path(os.environ.get("MUST_HOME") or Path.home() / ".must").resolve()
        try:
            fields: dict[str, Any] = json.loads((home / "services.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(home)
        return TypeAdapter(cls).validate_python({"home": home, **fields})

    def write(self) -> None:
        """Write services.json."""
        write_json(self.home / "services.json", TypeAdapter(Services).dump_python(self, mode="json", exclude={"home"}))

    @property
    def page(self) -> str:
        """The server's URL for a browser."""
        return self.url.removesuffix("/api")

    @property
    def worker_name(self) -> str:
        """The worker's name on the server."""
        return f"must-{getpass.getuser()}-{socket.gethostname()}"

    def running(self, name: Name) -> Service | None:
        """Return a service if it is running."""
        service: Service | None = getattr(self, name)
        return service if service and service.alive() else None

    def answers(self) -> bool:
        """Return True if our own server is running and answers."""
        return self.running("server") is not None and answers(self.url, BUSY_S)

    def environ(self) -> dict[str, str]:
        """Return the environment of Prefect. With our own server the user's Prefect profile is not used."""
        settings = embedded.DEFAULT_SETTINGS | SERVER_SETTINGS
        environ = {name: value for name, value in settings.items() if name not in os.environ}
        if not self.own:
            return environ
        home = self.home / "prefect"
        environ |= {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "profiles.toml")}
        return environ | embedded.own_server_environ(self.url)

    def start(self, name: Name, *arguments: str) -> Service:
        """Start a service with the command `prefect <arguments>`."""
        log = self.home / f"{name}.log"
        write_logging(self.home, LOGGING)
        with open(log, "ab") as file, _sigint_enabled():
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "prefect", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=PROJECT,
                env=os.environ | self.environ() | embedded.logging_settings(self.home),
                start_new_session=True,
            )
        service = Service(ProcessId.from_pid(child.pid), time.time(), log)
        setattr(self, name, service)
        self.write()
        return service

    def stop(self, name: Name) -> bool:
        """End a service. Returns True if it was running."""
        service = self.running(name)
        if service:
            service.stop()
        setattr(self, name, None)
        self.write()
        return service is not None


@contextlib.contextmanager
def _sigint_enabled() -> Iterator[None]:
    """Let processes that are started inside receive SIGINT, even if this one ignores it, as in a script's background.

    Prefect's worker ends by sending SIGINT to itself.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for(name: Name, service: Service, ready: Callable[[], bool]) -> None:
    """Wait until a service is ready. Raises ConfigError with the last line of its log if it ends or takes too long."""
    if not wait_until_ready(ready, service.alive):
        failed = f"is not ready after {embedded.START_S:.0f} s" if service.alive() else "did not start"
        reason = last_line(service.log) or "it printed nothing"
        raise ConfigError(f"Prefect's {name} {failed}: {reason}. Its log is {service.log}.")


def running_server_environ() -> dict[str, str]:
    """Return the environment for a run on the server of `must up`; empty if it is not up or the user names another."""
    services = Services.read()
    return services.environ() if services.own and not user_api_url() and services.answers() else {}


@contextlib.contextmanager
def locked_services() -> Iterator[Services]:
    """Yield the services while no other process of this user changes them.

    Raises ConfigError if the home is in use on another machine.
    """
    home = Services.read().home
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        services = Services.read()
        for service in filter(None, (services.server, services.worker)):
            host = service.process.machine.split()[0]
            if host != socket.gethostname():
                raise ConfigError(
                    f"{home} records services on {host}: `must down` there ends them. If that machine is gone, "
                    f"delete {home / 'services.json'}; or name another folder in MUST_HOME."
                )
        yield services
