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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import yaml

from flows.server.daemons import Service, Services, locked_services, wait_for
from flows.server.embedded import answers, check_user_server, temporary_environ, user_api_url
from pipeline.errors import PROJECT, ConfigError, MustError
from pipeline.steps.artifact import hash_file, hash_json

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

# Prefect is imported late, in an environment made for it.
# ruff: noqa: PLC0415

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
        if services.own and not services.answers():
            _start_server(services, echo)
        with temporary_environ(services.environ()):
            from flows.server.api import client_of, ensure_work_pool

            if not services.own:
                check_user_server()

            with client_of(services) as client:
                ensure_work_pool(client, services.own)
                worker = services.worker if services.worker and services.worker.alive() else None
                started = worker or _start_worker(services, client, echo)
                _deploy(services, client, echo)
                _wait_for_worker(services, client, started)
        return services


def _choose_server(services: Services) -> None:
    """Use the server that the user names, else our own."""
    theirs = user_api_url()
    own = theirs is None or (services.own and theirs.rstrip("/") == services.url)
    unchanged = own == services.own and (own or theirs == services.url)
    if unchanged:
        return
    if services.worker and services.worker.alive():
        raise ConfigError(
            f"PREFECT_API_URL is {theirs or 'not set'}, but a worker for {services.url} is up: `must down` first."
        )
    services.url, services.own, services.deployed = theirs or "", own, ""


def _start_server(services: Services, echo: Echo) -> None:
    while True:
        server = services.server if services.server and services.server.alive() else None
        if not server:
            port = _free_port(services.url)
            services.url = f"http://127.0.0.1:{port}/api"
            echo(f"Starting Prefect's server on port {port} ...")
            server = services.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_for("server", server, lambda: answers(services.url))
        if _is_ours(services):
            return
        services.stop("server")  # another user's server took the port first: try the next one


def _is_ours(services: Services) -> bool:
    """Return True if the server that answers is ours: it keeps its files in our home."""
    with temporary_environ(services.environ()):
        from flows.server.api import client_of, server_home

        with client_of(services) as client:
            return server_home(client) == services.environ()["PREFECT_HOME"]


def _free_port(url: str) -> int:
    """Return the port that the server had before if it is free, else the first free one."""
    before = url.removesuffix("/api").rpartition(":")[2]
    for port in [*([int(before)] if before else []), *range(FIRST_PORT, FIRST_PORT + PORTS)]:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise ConfigError(f"None of the ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free.")


def _choose_limit(services: Services, at_once: int | None) -> None:
    """Set how many flow runs the worker takes at a time. Raises ConfigError if it is running with another limit."""
    running = services.worker is not None and services.worker.alive()
    if running and at_once not in (None, services.at_once):
        raise ConfigError(f"The worker that is up takes {services.at_once} at once, not {at_once}: `must down` first.")
    if not running:
        services.at_once = at_once or 1


def _start_worker(services: Services, client: SyncPrefectClient, echo: Echo) -> Service:
    """Start a worker for the work pool, after marking runs that died with the one before."""
    from flows.server.api import KIND, POOL

    echo("Starting a worker ...")
    _mark_dead_runs(services, client)
    pool = ["--pool", POOL, "--type", KIND, "--install-policy", "never"]
    return services.start(
        "worker", "worker", "start", *pool, "--name", services.worker_name, "--limit", str(services.at_once)
    )


def _wait_for_worker(services: Services, client: SyncPrefectClient, worker: Service) -> None:
    from flows.server.api import last_heartbeat

    wait_for("worker", worker, lambda: last_heartbeat(client, services.worker_name) >= worker.since)


def _deploy(services: Services, client: SyncPrefectClient, echo: Echo) -> None:
    """Register the deployments of this version of the project, unless they are registered already."""
    from flows.server.api import deployment_names

    file = PROJECT / "prefect.yaml"
    wanted = yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]
    digest = hash_json([str(PROJECT), *(hash_file(path) for path in (file, PROJECT / "flows" / "deployments.py"))])
    if services.deployed == digest and len(deployment_names(client)) >= len(wanted):
        return
    echo("Registering the deployments of prefect.yaml ...")
    command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode or len(deployment_names(client)) < len(wanted):
        raise MustError(f"`prefect deploy` failed: {(done.stdout + done.stderr)[-2000:]}")
    services.deployed = digest
    services.write()


def down(now: bool, echo: Echo) -> list[str]:
    """End what `up` started, and return the names of the services that were running.

    Active runs are stopped if `now`, after saving their state; else they are listed in a ConfigError.
    """
    with locked_services() as services:
        if _reachable(services):
            with temporary_environ(services.environ()):
                from flows.server.api import client_of

                with client_of(services) as client:
                    _stop_runs(services, client, now, echo)
                    worker = services.stop("worker")
                    _mark_dead_runs(services, client, kill=True)
        elif now or not (services.worker and services.worker.alive()):
            worker = services.stop("worker")
        else:
            raise ConfigError(
                f"The server {services.url} does not answer, so it is not known what the worker is at. "
                f"{'`must up` starts it again' if services.own else 'PREFECT_API_URL has to name it'}; "
                "`must down --now` ends the worker whatever it is at."
            )
        return [*(["worker"] if worker else []), *(["server"] if services.stop("server") else [])]


def _reachable(services: Services) -> bool:
    """Return True if the worker's server answers."""
    if services.own:
        return services.answers()
    with contextlib.suppress(ConfigError), temporary_environ(services.environ()):
        if user_api_url():
            check_user_server()
            return True
    return False


def _stop_runs(services: Services, client: SyncPrefectClient, now: bool, echo: Echo) -> None:
    from flows.server.api import active_runs, cancel, pause_work_pool

    runs = active_runs(client, services.worker_name)
    if runs and not now:
        raise ConfigError(
            f"At work: {', '.join(run.describe() for run in runs)}. `must down --now` stops what is at work; "
            "it is saved, and the same run goes on from there."
        )
    if services.own:
        pause_work_pool(client)  # else the worker starts the next scheduled runs
    for run in runs:
        echo(f"Stopping {run.name} ...")
        if run.is_child_of(services.worker):
            cancel(client, run)
        else:
            run.signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while active_runs(client, services.worker_name) and time.monotonic() < deadline:
        time.sleep(1)


def _mark_dead_runs(services: Services, client: SyncPrefectClient, kill: bool = False) -> None:
    """Mark the worker's active runs whose processes are gone as crashed; all of them, after killing them, if `kill`."""
    from flows.server.api import active_runs, mark_crashed

    for run in active_runs(client, services.worker_name):
        if kill:
            run.signal(signal.SIGKILL)
        if kill or not run.is_alive():
            mark_crashed(client, run)


def status() -> dict[str, Any]:
    """Return what is running, as JSON: server, worker, deployments, active runs, and how many runs wait."""
    services = Services.read()
    report: dict[str, Any] = {"home": str(services.home), "url": services.url, "page": services.page}
    report |= {"own_server": services.own, "answers": False, "deployments": [], "runs": [], "waiting": 0}
    for name, service in (("server", services.server), ("worker", services.worker)):
        report[name] = _service_status(service) if service else None
    with temporary_environ(services.environ()), contextlib.suppress(ConfigError):
        report |= _server_status(services)
    return report


def _server_status(services: Services) -> dict[str, Any]:
    """Return the part of the status that the server knows. Raises ConfigError if it does not answer."""
    if not services.own:
        check_user_server()
    elif not services.answers():
        raise ConfigError(f"{services.url} does not answer.")
    from flows.server.api import active_runs, client_of, count_scheduled, deployment_names

    with client_of(services) as client:
        runs = active_runs(client, None if services.own else services.worker_name)
        return {
            "answers": True,
            "deployments": deployment_names(client),
            "runs": [dataclasses.asdict(run) | {"identity": str(run.identity)} for run in runs],
            "waiting": count_scheduled(client),
        }


def _service_status(service: Service) -> dict[str, Any]:
    since = datetime.datetime.fromtimestamp(service.since, datetime.UTC).isoformat(timespec="seconds")
    return {"alive": service.alive(), "process": service.process.number, "since": since, "log": service.log}
