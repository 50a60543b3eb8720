"""The whole run with Prefect: its settings, its server where the user has none, and the end of both."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from flows.run.run import Run
from flows.run.step_runner import Subprocess
from flows.server.daemons import running_server_environ
from flows.server.embedded import (
    INLINE,
    Server,
    check_user_server,
    prefect_environ,
    temporary_environ,
    user_api_url,
    write_logging,
)
from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact

# Prefect is imported late, in an environment made for it.
# ruff: noqa: PLC0415


def run_with_prefect(run: Run, work: Subprocess) -> dict[str, Artifact]:
    """Every step as a Prefect task run, worked by `work`, on the server of PREFECT_API_URL, of `must up` or of its own.

    Raises what a step raises; ConfigError if Prefect is missing, its server does not start or does not answer.
    """
    if not importlib.util.find_spec("prefect"):
        raise ConfigError(f"Prefect is not installed: uv pip install prefect, {INLINE}.")
    with temporary_environ(running_server_environ()), _server(run) as server, _settings(run, server):
        from flows.orchestration.task_runs import TaskRuns, run_as_flow, wait_until_recorded

        steps = TaskRuns()
        try:
            return run_as_flow(run, steps, work)
        finally:
            if server is None or server.alive():
                wait_until_recorded(steps, embedded=server is not None)


def home_of(run: Run) -> Path:
    """Where Prefect keeps what it writes, unless the user has chosen a place: on this machine, wherever the root is."""
    return Path(os.environ.get("PREFECT_HOME") or run.workspace.root.local_path("prefect"))


@contextlib.contextmanager
def _server(run: Run) -> Iterator[Server | None]:
    """An embedded server, starting, or None if the user names one."""
    if user_api_url():
        yield None
        return
    server = Server(home_of(run))
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def _settings(run: Run, server: Server | None) -> Iterator[None]:
    """Prefect imported, set up, and its server answering."""
    home = home_of(run)
    write_logging(home)
    with temporary_environ(prefect_environ(home, server.url if server else None)), _everywhere():
        from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, PREFECT_HOME, temporary_settings

        if server is None:
            with temporary_settings({PREFECT_API_URL: user_api_url()}):  # where Prefect was imported before
                check_user_server()
                yield
            return
        server.wait(run.runtime)
        ours = {PREFECT_API_URL: server.url, PREFECT_HOME: home}
        with temporary_settings(ours, restore_defaults=[PREFECT_API_KEY]):
            yield


@contextlib.contextmanager
def _everywhere() -> Iterator[None]:
    """The environment as Prefect's settings in its own threads as well: it read the one it was imported in."""
    from prefect import context

    before = context.GLOBAL_SETTINGS_CONTEXT
    context.refresh_global_settings_context()
    try:
        yield
    finally:
        context.GLOBAL_SETTINGS_CONTEXT = before
