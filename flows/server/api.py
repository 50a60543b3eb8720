"""What lies on a Prefect server, as far as `must` looks after it: a work pool, the deployments, and runs at work.

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
AT_WORK = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
LOST = "Its process ended without a word. What is done is kept: run it again to go on."


@dataclasses.dataclass(frozen=True)
class ActiveRun:
    """A flow run that was begun and has not ended: its state, the steps that are at work, and who carries it out."""

    identity: UUID
    name: str
    flow: str
    state: str
    since: str
    """When it began, ISO 8601 in UTC; empty if it has not."""
    steps: list[str]
    worker: str | None
    """None: no worker but a command, such as `must run`."""
    process: int | None

    def is_alive(self) -> bool:
        """Whether its process, of this machine, is there: one that was told at its start that it is this run's."""
        try:
            environ = psutil.Process(self.process).environ() if self.process else {}
        except (psutil.Error, OSError):
            return False
        return environ.get("PREFECT__FLOW_RUN_ID") == str(self.identity)

    def is_of(self, worker: Service | None) -> bool:
        """Whether a worker that is up looks after it; one that took the place of another does not."""
        if worker is None or not worker.alive():
            return False
        try:
            parent = psutil.Process(self.process).ppid() if self.process else None
        except (psutil.Error, OSError):
            parent = None
        return parent in (None, worker.process.number)  # none: about to be started, or ended just now

    def told(self) -> str:
        """Flow, name and step in a few words."""
        return f"{self.flow} {self.name} ({', '.join(self.steps) or self.state})"

    def signal(self, number: int) -> None:
        """Send a signal to the group of its process, if that is there. Steps have their own groups, and end with it."""
        if self.process and self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process, number)


@contextlib.contextmanager
def client_of(services: Services) -> Iterator[SyncPrefectClient]:
    """A client of the server. ConfigError for what it refuses, or if it goes away."""
    ours = {PREFECT_API_URL: services.url} if services.own else {}
    try:
        # where Prefect was imported before, it was with other settings; and a key for elsewhere is not for our server
        settings = temporary_settings(ours, restore_defaults=[PREFECT_API_KEY] if ours else [])
        with settings, get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        raise ConfigError(f"Prefect's server {services.url}: {type(error).__name__}: {error}") from error


def server_home(client: SyncPrefectClient) -> str | None:
    """The folder, on its machine, where the server keeps its files; None if it does not tell us."""
    try:
        home: str = client.request("GET", "/admin/settings").json()["home"]
    except httpx.HTTPStatusError:
        return None
    return home


def ensure_work_pool(client: SyncPrefectClient, own: bool) -> None:
    """Make a work pool for the deployments; our own server's takes runs again. ConfigError if there is another kind."""
    pool = _pool(client)
    if pool is None:
        client.create_work_pool(WorkPoolCreate(name=POOL, type=KIND))
    elif pool.type != KIND:
        raise ConfigError(
            f"The server's work pool {POOL!r} is of type {pool.type!r}: start a worker of that type or delete the pool."
        )
    elif own and pool.is_paused:
        client.update_work_pool(POOL, WorkPoolUpdate(is_paused=False))


def pause_work_pool(client: SyncPrefectClient) -> None:
    """The pool starts no further run; they wait for it to be opened."""
    if _pool(client):
        client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))


def _pool(client: SyncPrefectClient) -> WorkPool | None:
    try:
        return client.read_work_pool(POOL)
    except ObjectNotFound:
        return None


def last_heartbeat(client: SyncPrefectClient, worker: str) -> float:
    """When a worker of the pool spoke last, seconds since 1970; 0 if it never did."""
    found = client.read_workers_for_work_pool(POOL)
    times = [each.last_heartbeat_time for each in found if each.name == worker]
    return max((time.timestamp() for time in times if time), default=0.0)


def deployment_names(client: SyncPrefectClient) -> list[str]:
    """What can be run by the pool: `<flow>/<deployment>`."""
    found = client.read_deployments(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])))
    return sorted(f"{client.read_flow(each.flow_id).name}/{each.name}" for each in found)


def count_scheduled(client: SyncPrefectClient) -> int:
    """How many runs wait for the pool."""
    if _pool(client) is None:
        return 0
    return len(client.read_flow_runs(flow_run_filter=_in_state([StateType.SCHEDULED]), work_pool_filter=_of_pool()))


def _of_pool() -> WorkPoolFilter:
    return WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))


def _in_state(types: list[StateType]) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))


def active_runs(client: SyncPrefectClient, worker: str | None) -> list[ActiveRun]:
    """The runs at work on a server, oldest first: all of them, or those of one worker."""
    found = client.read_flow_runs(flow_run_filter=_in_state(AT_WORK), sort=FlowRunSort.START_TIME_ASC)
    return [_told(client, run) for run in found if worker in (None, _worker(run))]


def _worker(run: FlowRun) -> str | None:
    labels: dict[str, Any] = run.labels or {}
    return labels.get("prefect.worker.name")


def _told(client: SyncPrefectClient, run: FlowRun) -> ActiveRun:
    running = TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING]))
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])), task_run_filter=TaskRunFilter(state=running)
    )
    pid = run.infrastructure_pid
    return ActiveRun(
        run.id,
        run.name,
        client.read_flow(run.flow_id).name,
        (run.state_name or "").lower(),
        run.start_time.isoformat() if run.start_time else "",
        [task.name for task in tasks],
        _worker(run),
        int(pid) if pid and pid.isdigit() else None,
    )


def cancel(client: SyncPrefectClient, run: ActiveRun) -> None:
    """Ask a run's worker to stop it in order."""
    client.set_flow_run_state(run.identity, Cancelling())


def mark_crashed(client: SyncPrefectClient, run: ActiveRun) -> None:
    """Note that a run is not at work any more."""
    with contextlib.suppress(ObjectNotFound):
        client.set_flow_run_state(run.identity, Crashed(message=LOST), force=True)
