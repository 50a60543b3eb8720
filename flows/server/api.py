"""Requests of `must` to a Prefect server: its work pool, its deployments, and its active flow runs.

Import this with Prefect's settings in place: Prefect reads them when it is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkPool
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Crashed

from flows.server.daemons import Service, Services
from pipeline.errors import ConfigError

POOL = "must"
KIND = "process"
"""Name and type of the work pool."""
IN_POOL = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
ACTIVE_STATES = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
CRASHED = "Its process is gone. What is done is kept: run it again to go on."


@dataclasses.dataclass(frozen=True)
class ActiveRun:
    """A flow run that has begun and has not ended."""

    identity: UUID
    name: str
    flow: str
    state: str
    since: str
    """Start, ISO 8601 in UTC; empty if it is pending."""
    steps: list[str]
    """Names of the task runs that are running."""
    worker: str | None
    """None if it was started by a command such as `must run`."""
    process: int | None
    """The pid, on the worker's machine."""

    def is_alive(self) -> bool:
        """Return True if its process runs on this machine. The environment tells it from one that reuses the pid."""
        try:
            environ = psutil.Process(self.process).environ() if self.process else {}
        except (psutil.Error, OSError):
            return False
        return environ.get("PREFECT__FLOW_RUN_ID") == str(self.identity)

    def is_child_of(self, worker: Service) -> bool:
        """Return True if this worker, which is running, started it; not another one that it replaced."""
        try:
            parent = psutil.Process(self.process).ppid() if self.process else None
        except (psutil.Error, OSError):
            parent = None
        return parent in (None, worker.process.number)  # None: it is about to start, or has just ended

    def signal(self, number: int) -> None:
        """Send a signal to its process group, if that exists. Steps have groups of their own, and end with the run."""
        if self.process and self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process, number)


class ServerApi:
    """Requests to a Prefect server."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client

    def home(self) -> str | None:
        """Return the folder of the server's files, on its machine; None if the server refuses to name it."""
        try:
            home: str = self._client.request("GET", "/admin/settings").json()["home"]
        except httpx.HTTPStatusError:
            return None
        return home

    def ensure_work_pool(self, own: bool) -> None:
        """Create the work pool, or resume that of our own server. Raises ConfigError if it is of another type."""
        pool = self._pool()
        if pool is None:
            self._client.create_work_pool(WorkPoolCreate(name=POOL, type=KIND))
        elif pool.type != KIND:
            raise ConfigError(
                f"The server's work pool {POOL!r} is of type {pool.type!r}, not {KIND!r}: "
                "delete the pool, or start a worker of that type."
            )
        elif own and pool.is_paused:
            self._client.update_work_pool(POOL, WorkPoolUpdate(is_paused=False))

    def pause_work_pool(self) -> None:
        """Pause the work pool: flow runs that are scheduled wait until it is resumed."""
        if self._pool():
            self._client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))

    def _pool(self) -> WorkPool | None:
        try:
            return self._client.read_work_pool(POOL)
        except ObjectNotFound:
            return None

    def last_heartbeat(self, worker: str) -> float:
        """Return the Unix time of a worker's last heartbeat; 0 if there was none."""
        workers = self._client.read_workers_for_work_pool(POOL)
        times = [each.last_heartbeat_time for each in workers if each.name == worker]
        return max((time.timestamp() for time in times if time), default=0.0)

    def deployment_names(self) -> list[str]:
        """Return the names of the work pool's deployments, `<flow>/<deployment>`."""
        found = self._client.read_deployments(work_pool_filter=IN_POOL)
        return sorted(f"{self._client.read_flow(each.flow_id).name}/{each.name}" for each in found)

    def count_scheduled(self) -> int:
        """Return how many flow runs wait for the work pool."""
        scheduled = _in_state([StateType.SCHEDULED])
        return len(self._client.read_flow_runs(flow_run_filter=scheduled, work_pool_filter=IN_POOL))

    def active_runs(self, worker: str | None) -> list[ActiveRun]:
        """Return the active flow runs, oldest first: those of one worker, or all (None)."""
        runs = self._client.read_flow_runs(flow_run_filter=_in_state(ACTIVE_STATES), sort=FlowRunSort.START_TIME_ASC)
        return [self._active_run(run) for run in runs if worker in (None, _worker_of(run))]

    def _active_run(self, run: FlowRun) -> ActiveRun:
        running = TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING]))
        tasks = self._client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
            task_run_filter=TaskRunFilter(state=running),
        )
        pid = run.infrastructure_pid
        return ActiveRun(
            run.id,
            run.name,
            self._name_of(run),
            (run.state_name or "").lower(),
            run.start_time.isoformat() if run.start_time else "",
            [task.name for task in tasks],
            _worker_of(run),
            int(pid) if pid and pid.isdigit() else None,
        )

    def _name_of(self, run: FlowRun) -> str:
        """Return the name of the run's deployment, or of its flow if it was not started by one."""
        if run.deployment_id:
            with contextlib.suppress(ObjectNotFound):
                return self._client.read_deployment(run.deployment_id).name
        return self._client.read_flow(run.flow_id).name

    def cancel(self, run: ActiveRun) -> None:
        """Ask a run's worker to stop it."""
        self._client.set_flow_run_state(run.identity, Cancelling())

    def mark_crashed(self, run: ActiveRun) -> None:
        """Set the state of a run whose process is gone to Crashed."""
        with contextlib.suppress(ObjectNotFound):
            self._client.set_flow_run_state(run.identity, Crashed(message=CRASHED), force=True)


@contextlib.contextmanager
def connect(services: Services) -> Iterator[ServerApi]:
    """Yield the server's API. Raises ConfigError if the server refuses a request or goes away."""
    changes = {PREFECT_API_URL: services.url} if services.own else {}
    try:
        # Prefect may have been imported with other settings, and our server must not get the key of another one
        settings = temporary_settings(changes, restore_defaults=[PREFECT_API_KEY] if changes else [])
        with settings, get_client(sync_client=True) as client:
            yield ServerApi(client)
    except httpx.HTTPError as error:
        raise ConfigError(f"Prefect's server {services.url}: {type(error).__name__}: {error}") from error


def _in_state(types: list[StateType]) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))


def _worker_of(run: FlowRun) -> str | None:
    labels: dict[str, Any] = run.labels or {}
    return labels.get("prefect.worker.name")
