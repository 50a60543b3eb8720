"""Prefect's server and a worker in the background: what is noted of them, how they are started, and how they end.

    <home>/services.json   what is up
    <home>/server.log  <home>/worker.log
    <home>/prefect/        where Prefect keeps what it writes, its database among it

The home is `~/.must`, or what MUST_HOME says: one per user and machine. The user's own Prefect profile is left alone.
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

from flows.server.embedded import (
    DEFAULT_SETTINGS,
    PATIENCE_S,
    answers,
    logging_settings,
    no_proxy_environ,
    user_api_url,
    write_logging,
)
from pipeline.errors import PROJECT, ConfigError
from pipeline.steps.artifact import write_json
from pipeline.storage.process_id import ProcessId

"""Where prefect.yaml is, and where relative paths of deployed runs begin."""
GOODBYE_S = 15.0
"""For a service to end in order, before it is killed."""
SERVED = {
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    # What a run logs is then shown by `prefect deployment run --watch`.
    "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
    "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
}
"""Settings of Prefect that hold beside those of a run, unless the user's environment says otherwise."""
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {
        "api": {"class": "prefect.logging.handlers.APILogHandler"},
        "line": {"class": "logging.StreamHandler", "formatter": "line"},
    },
    "loggers": {
        "prefect": {"level": "INFO"},
        "prefect.server": {"level": "WARNING"},
        "prefect.flow_runs": {"level": "NOTSET", "handlers": ["api"]},
        "prefect.task_runs": {"level": "NOTSET", "handlers": ["api"]},
    },
    "root": {"level": "WARNING", "handlers": ["line"]},
}
"""Plain lines: what Prefect prints with by default ends the process of a run, once the worker that listened is gone."""
Name = Literal["server", "worker"]


@dataclasses.dataclass(frozen=True)
class Service:
    """A process in the background."""

    process: ProcessId
    since: float
    """When it was started, seconds since 1970."""
    log: str

    def alive(self) -> bool:
        return self.process.is_local and not self.process.has_ended()

    def last_words(self) -> str:
        """The last line of its log."""
        lines = Path(self.log).read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def stop(self) -> None:
        """End it: in order, if it does so in time."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.alive():
                os.kill(self.process.number, number)
            deadline = time.monotonic() + GOODBYE_S
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.1)


@dataclasses.dataclass
class Services:
    """What is up, as services.json says."""

    home: Path
    url: str = ""
    """Of the API of the server that is used, or was used last."""
    own: bool = True
    """Whether that server was started here."""
    server: Service | None = None
    worker: Service | None = None
    at_once: int = 1
    """Runs that the worker takes at once."""
    deployed: str = ""
    """Digest of the deployments that the server was given."""

    @classmethod
    def read(cls) -> Services:
        """What was noted last."""
        home = Path(os.environ.get("MUST_HOME") or Path.home() / ".must").resolve()
        try:
            noted: dict[str, Any] = json.loads((home / "services.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(home)
        for name in ("server", "worker"):
            if noted[name]:
                noted[name] = Service(**{**noted[name], "process": ProcessId(**noted[name]["process"])})
        return cls(home, **noted)

    def write(self) -> None:
        """Note it."""
        noted = dataclasses.asdict(self)
        del noted["home"]
        write_json(self.home / "services.json", noted)

    @property
    def page(self) -> str:
        """The server's address for a browser."""
        return self.url.removesuffix("/api")

    @property
    def worker_name(self) -> str:
        """What the worker is called on the server."""
        return f"must-{getpass.getuser()}-{socket.gethostname()}"

    def answers(self) -> bool:
        """Whether our own server is there and can be spoken to."""
        return bool(self.server and self.server.alive() and answers(self.url))

    def environ(self) -> dict[str, str]:
        """The environment for Prefect: with our own server, nothing of the user's profile; else as the user has it."""
        decided = {name: value for name, value in (DEFAULT_SETTINGS | SERVED).items() if name not in os.environ}
        if not self.own:
            return decided
        kept = self.home / "prefect"
        return decided | {
            "PREFECT_API_URL": self.url,
            "PREFECT_HOME": str(kept),
            "PREFECT_PROFILES_PATH": str(kept / "profiles.toml"),
            "PREFECT_PROFILE": "ephemeral",
            **no_proxy_environ(),
        }

    def start(self, name: Name, *arguments: str) -> Service:
        """Start one with `prefect <arguments>`, and note it."""
        log = self.home / f"{name}.log"
        write_logging(self.home, LOGGING)
        with open(log, "ab") as file, _interruptible():
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "prefect", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=PROJECT,
                env=os.environ | self.environ() | logging_settings(self.home),
                start_new_session=True,
            )
        service = Service(ProcessId.from_pid(child.pid), time.time(), str(log))
        setattr(self, name, service)
        self.write()
        return service

    def stop(self, name: Name) -> bool:
        """End one, and note it; returns whether it was up."""
        service: Service | None = getattr(self, name)
        was_up = bool(service and service.alive())
        if service and was_up:
            service.stop()
        setattr(self, name, None)
        self.write()
        return was_up


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """What is started inside hears SIGINT, also where this process was started not to (in the background of a script):
    Prefect's worker ends by sending it to itself.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for(name: Name, service: Service, ready: Callable[[], bool]) -> None:
    """Return once a service that was started is ready. ConfigError with its last words if it ends or takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not ready():
        if not service.alive() or time.monotonic() > deadline:
            failed = "is not ready yet" if service.alive() else "did not start"
            raise ConfigError(
                f"Prefect's {name} {failed}: {service.last_words().rstrip('.')}. The whole of it is in {service.log}."
            )
        time.sleep(0.2)


def running_server_environ() -> dict[str, str]:
    """The environment for a run on the server of `must up`; empty if that is not up, or the user names another one."""
    services = Services.read()
    return services.environ() if services.own and not user_api_url() and services.answers() else {}


@contextlib.contextmanager
def locked_services() -> Iterator[Services]:
    """What is up, while nobody else of this user changes it. ConfigError if the home is in use on another machine."""
    home = Services.read().home
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        services = Services.read()
        for service in filter(None, (services.server, services.worker)):
            where = service.process.machine.split()[0]
            if where != socket.gethostname():
                raise ConfigError(
                    f"{home} tells of services on {where}: `must down` there ends them. If that machine is gone, "
                    f"delete {home / 'services.json'}; or name another folder in MUST_HOME."
                )
        yield services
