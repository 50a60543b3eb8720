"""Run all steps with Prefect: set it up, start a server if the user has none, and end it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from flows.run.run import Run
from flows.run.step_runner import Subprocess
from flows.server import embedded
from flows.server.daemons import running_server_environ
from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact
from pipeline.steps.runtime import Runtime

# Prefect is imported late, in an environment made for it.
# ruff: noqa: PLC0415


def run_with_prefect(run: Run, subprocess: Subprocess) -> dict[str, Artifact]:
    """Run every step as a Prefect task run. Returns the artifacts by step.

    The server is that of PREFECT_API_URL, else that of `must up`, else one of the run's own. Raises what a step raises;
    ConfigError if Prefect is missing, or if its server does not start or answer.
    """
    if not importlib.util.find_spec("prefect"):
        raise ConfigError(f"Prefect is not installed: uv pip install prefect, {embedded.WITHOUT_PREFECT}.")
    with contextlib.ExitStack() as stack:
        stack.enter_context(embedded.temporary_environ(running_server_environ()))
        # always on this machine
        home = Path(os.environ.get("PREFECT_HOME") or run.workspace.root.local_path("prefect"))
        server = None if embedded.user_api_url() else embedded.Server(home)
        if server:
            stack.callback(server.stop)
        stack.enter_context(_settings(home, server, run.runtime))
        from flows.orchestration.task_runs import TaskRuns, run_as_flow, wait_until_recorded

        task_runs = TaskRuns()
        try:
            return run_as_flow(run, task_runs, subprocess)
        finally:
            if server is None or server.alive():
                wait_until_recorded(task_runs, embedded=server is not None)


@contextlib.contextmanager
def _settings(home: Path, server: embedded.Server | None, runtime: Runtime) -> Iterator[None]:
    """Import Prefect with the settings of a run, and wait until its server answers.

    Args:
        home: Folder for Prefect's files.
        server: The run's own server; None if the user names one.
    """
    embedded.write_logging(home)
    with embedded.temporary_environ(embedded.prefect_environ(home, server.url if server else None)), _global_settings():
        from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, PREFECT_HOME, temporary_settings

        if server is None:
            with temporary_settings({PREFECT_API_URL: embedded.user_api_url()}):  # where Prefect was imported before
                embedded.check_user_server()
                yield
            return
        server.wait(runtime)
        ours = {PREFECT_API_URL: server.url, PREFECT_HOME: home}
        with temporary_settings(ours, restore_defaults=[PREFECT_API_KEY]):
            yield


@contextlib.contextmanager
def _global_settings() -> Iterator[None]:
    """Apply the environment to Prefect's own threads too: their settings date from when Prefect was imported."""
    from prefect import context

    before = context.GLOBAL_SETTINGS_CONTEXT
    context.refresh_global_settings_context()
    try:
        yield
    finally:
        context.GLOBAL_SETTINGS_CONTEXT = before
