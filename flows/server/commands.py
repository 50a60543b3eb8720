"""Run `must up`, `must down` and `must status`: a Prefect server and a worker in the background.

If PREFECT_API_URL names a server that `must up` did not start, that one is used, and only a worker is started.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import yaml

from flows.server.daemons import Service, Services, locked_services, wait_for
from flows.server.embedded import answers, check_user_server, temporary_environ, user_api_url
from pipeline.errors import PROJECT, ConfigError, MustError
from pipeline.steps.artifact import hash_file
from pipeline.steps.config_hash import hash_json

if TYPE_CHECKING:
    from flows.server.api import ServerApi

FIRST_PORT, PORTS = 4200, 100
GRACE_S = 45.0
"""For runs to save their state; Prefect kills them after 30 s."""
Echo = Callable[[str], None]
"""Prints a line about what is going on."""


def up(at_once: int | None, echo: Echo) -> Services:
    """Start a server and a worker, unless they are running, and register the deployments of prefect.yaml.

    Args:
        at_once: Flow runs that the worker takes at a time; None for as many as before, or 1.

    Raises ConfigError if a server or a worker does not start, or if the running worker was started for another server
    or for another number of runs.
    """
    with locked_services() as services:
        _choose_server(services)
        _choose_limit(services, at_once)
        if not services.own:
            _check_server(services)
        elif not services.answers():
            _start_server(services, echo)
        with _connect(services) as api:
            api.ensure_work_pool(services.own)
            worker = services.running("worker") or _start_worker(services, api, echo)
            _deploy(services, api, echo)
            wait_for("worker", worker, lambda: api.last_heartbeat(services.worker_name) >= worker.since)
        return services


@contextlib.contextmanager
def _connect(services: Services) -> Iterator[ServerApi]:
    """Yield the API of the server that is used, after importing Prefect in an environment made for it."""
    with temporary_environ(services.environ()):
        from flows.server.api import connect  # noqa: PLC0415 - Prefect reads its settings when it is imported

        with connect(services) as api:
            yield api


def _check_server(services: Services) -> None:
    """Raise ConfigError if the server that is used does not answer."""
    if services.own:
        if not services.answers():
            raise ConfigError(f"Prefect's server {services.url} does not answer: `must up` starts it again.")
    elif not _is_used(theirs := user_api_url(), services):
        raise ConfigError(f"PREFECT_API_URL is {theirs or 'not set'}: set it to {services.url}, which `must up` used.")
    else:
        with temporary_environ(services.environ()):
            check_user_server()


def _is_used(url: str | None, services: Services) -> bool:
    """Return True if this is the URL of the server that is used; a slash at its end makes no difference."""
    return url is not None and url.rstrip("/") == services.url.rstrip("/")


def _choose_server(services: Services) -> None:
    """Use the server that the user names, else our own. Raises ConfigError if a worker for another one is running."""
    theirs = user_api_url()
    used = _is_used(theirs, services)
    own = theirs is None or (services.own and used)
    if own == services.own and (own or used):
        return
    if services.running("worker"):
        raise ConfigError(
            f"PREFECT_API_URL is {theirs or 'not set'}, but a worker for {services.url} is running: "
            "end it with `must down` first."
        )
    services.url, services.own, services.deployed = theirs or "", own, ""


def _start_server(services: Services, echo: Echo) -> None:
    while True:
        server = services.running("server")
        if not server:
            port = _free_port(services.url)
            services.url = f"http://127.0.0.1:{port}/api"
            echo(f"Starting Prefect's server on port {port} ...")
            server = services.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_for("server", server, lambda: answers(services.url))
        with _connect(services) as api:
            if api.home() == services.environ()["PREFECT_HOME"]:
                return
        services.stop("server")  # another user's server took the port first: try the next one


def _free_port(url: str) -> int:
    """Return the port that the server had before if it is free, else the first free one."""
    before = url.removesuffix("/api").rpartition(":")[2]
    for port in [*([int(before)] if before else []), *range(FIRST_PORT, FIRST_PORT + PORTS)]:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise ConfigError(
        f"None of the ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free for Prefect's server: end a program that "
        "uses one of them, or name a server in PREFECT_API_URL."
    )


def _choose_limit(services: Services, at_once: int | None) -> None:
    """Set how many flow runs the worker takes at a time. Raises ConfigError if it is running with another limit."""
    if not services.running("worker"):
        services.at_once = at_once or 1
    elif at_once not in (None, services.at_once):
        raise ConfigError(
            f"The worker that is running takes {services.at_once} runs at once, not {at_once}: "
            "end it with `must down` first."
        )


def _start_worker(services: Services, api: ServerApi, echo: Echo) -> Service:
    """Start a worker for the work pool, after marking runs that died with the previous one as crashed."""
    from flows.server.api import KIND, POOL  # noqa: PLC0415 - as in `_connect`

    echo("Starting a worker ...")
    _mark_dead_runs(services, api)
    pool = ["--pool", POOL, "--type", KIND, "--install-policy", "never"]
    return services.start(
        "worker", "worker", "start", *pool, "--name", services.worker_name, "--limit", str(services.at_once)
    )


def _deploy(services: Services, api: ServerApi, echo: Echo) -> None:
    """Register the deployments of this version of the project, unless they are registered already."""
    file = PROJECT / "prefect.yaml"
    wanted = yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]
    digest = hash_json([str(PROJECT), *(hash_file(path) for path in (file, PROJECT / "flows" / "deployments.py"))])
    if services.deployed == digest and len(api.deployment_names()) >= len(wanted):
        return
    echo("Registering the deployments of prefect.yaml ...")
    command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode or len(api.deployment_names()) < len(wanted):
        raise MustError(f"`prefect deploy` failed: {(done.stdout + done.stderr)[-2000:]}")
    services.deployed = digest
    services.write()


def down(now: bool, echo: Echo) -> list[str]:
    """End what `up` started, and return the names of the services that were running.

    Active runs are stopped if `now`, after saving their state; else they are listed in a ConfigError.
    """
    with locked_services() as services:
        try:
            _check_server(services)
        except ConfigError as error:
            if services.running("worker") and not now:
                raise ConfigError(
                    f"{error} Until the server answers, it is not known if the worker has active runs; "
                    "`must down --now` ends it in any case."
                ) from error
            worker = services.stop("worker")
        else:
            with _connect(services) as api:
                _stop_runs(services, api, now, echo)
                worker = services.stop("worker")
                _mark_dead_runs(services, api, kill=True)
        return [*(["worker"] if worker else []), *(["server"] if services.stop("server") else [])]


def _stop_runs(services: Services, api: ServerApi, now: bool, echo: Echo) -> None:
    """Stop the worker's active runs, and wait for their end. Raises ConfigError if there are any, unless `now`."""
    runs = api.active_runs(services.worker_name)
    if runs and not now:
        names = ", ".join(f"{run.flow} {run.name} ({', '.join(run.steps) or run.state})" for run in runs)
        raise ConfigError(
            f"There are active runs: {names}. `must down --now` stops them after saving their state; starting the same "
            "run again continues from there."
        )
    if services.own:
        api.pause_work_pool()  # else the worker starts the next scheduled runs
    for run in runs:
        echo(f"Stopping {run.name} ...")
        worker = services.running("worker")
        if worker and run.is_child_of(worker):
            api.cancel(run)
        else:
            run.signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while api.active_runs(services.worker_name) and time.monotonic() < deadline:
        time.sleep(1)


def _mark_dead_runs(services: Services, api: ServerApi, kill: bool = False) -> None:
    """Mark the worker's active runs whose processes are gone as crashed; all of them, after killing them, if `kill`."""
    for run in api.active_runs(services.worker_name):
        if kill:
            run.signal(signal.SIGKILL)
        if kill or not run.is_alive():
            api.mark_crashed(run)


def status() -> dict[str, Any]:
    """Return what is running, as JSON: server, worker, deployments, active runs, and how many runs wait.

    `problem` says why the server could not be asked, if one is up.
    """
    services = Services.read()
    report: dict[str, Any] = {"home": str(services.home), "url": services.url, "page": services.page}
    report |= {"own_server": services.own, "answers": False, "deployments": [], "runs": [], "waiting": 0}
    report["problem"] = None
    for name, service in (("server", services.server), ("worker", services.worker)):
        report[name] = _service_status(service) if service else None
    if services.own and not services.running("server"):
        return report
    try:
        _check_server(services)
        with _connect(services) as api:
            runs = api.active_runs(None if services.own else services.worker_name)
            report |= {
                "answers": True,
                "deployments": api.deployment_names(),
                "runs": [dataclasses.asdict(run) | {"identity": str(run.identity)} for run in runs],
                "waiting": api.count_scheduled(),
            }
    except ConfigError as error:
        report["problem"] = str(error)
    return report


def _service_status(service: Service) -> dict[str, Any]:
    since = datetime.datetime.fromtimestamp(service.since, datetime.UTC).isoformat(timespec="seconds")
    return {"alive": service.alive(), "process": service.process.number, "since": since, "log": str(service.log)}
