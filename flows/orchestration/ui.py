"""Show a run's progress, warnings and results on Prefect's pages, beside its states.

A run never fails over this: what can't be shown is recorded among the run's events.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from evaluation.report.markdown import summary
from evaluation.report.results import warnings
from evaluation.report.run_record import RunRecord
from evaluation.report.step_page import step_page
from flows.run.run import Run
from pipeline.steps.artifact import Artifact, read_json
from pipeline.steps.runtime import Runtime

UPDATE_S = 5.0
"""Between updates of a step's progress bar; steps that end sooner get none."""
LOG_S = 30.0
"""Between progress lines in a step's log."""
PAGES_S = 10.0
"""For the last pages of steps to be created, once all steps are done."""
MAX_LINES = 20
"""Most lines of a step's output to log at a time."""
TRACEBACK = "Traceback (most recent call last):"
COLUMNS = ("task", "dataset", "split", "metric", "better", "model", "value", "n")
Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


@contextlib.contextmanager
def mirror_progress(run: Run, step: str) -> Iterator[Runtime]:
    """Mirror a step's progress and output to the current task run. Yields the runtime to run the step with.

    Progress is shown as a bar, and now and then as a line in the task run's log. What the step prints, such as warnings
    of libraries, is in that log too.
    """
    mirror = _ProgressMirror(get_run_logger(), LogTail(run.log_path(step)))

    def progress(step: str, done: float, line: str) -> None:
        run.runtime.progress(step, done, line)
        mirror.latest = (done, line)

    # on another thread, so that training never waits for the server; Prefect finds the task run in the context
    follower = threading.Thread(target=contextvars.copy_context().run, args=(mirror.follow,), daemon=True)
    follower.start()
    try:
        yield dataclasses.replace(run.runtime, progress=progress)
    finally:
        mirror.ended.set()
        follower.join(UPDATE_S)


class LogTail:
    """Follows a log file from its current end, up to a traceback: the task run shows the error itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._ended = False

    def lines(self) -> list[str]:
        """Return the complete lines that are new, without empty ones."""
        if self._ended or not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self._position)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._position += len(complete)
        before, traceback, _ = complete.decode("utf-8", "replace").partition(TRACEBACK)
        self._ended = bool(traceback)
        return [line for line in before.splitlines() if line.strip()]


class _ProgressMirror:
    """A progress artifact and a log in Prefect that follow a step's latest report and its output."""

    def __init__(self, log: Log, output: LogTail) -> None:
        self.latest: tuple[float, str] | None = None
        self.ended = threading.Event()
        self._log, self._output = log, output
        self._artifact: UUID | None = None

    def follow(self) -> None:
        """Show what is new until the step has ended."""
        shown, logged = None, time.monotonic()
        while not self.ended.wait(UPDATE_S):
            self._log_output()
            if self.latest and self.latest != shown:
                shown = self.latest
                self._show(*shown)
                if time.monotonic() - logged >= LOG_S:
                    logged = time.monotonic()
                    self._log.info("%.0f %%: %s", shown[0] * 100, shown[1])
        self._log_output()
        if self._artifact and self.latest:
            self._show(*self.latest)

    def _log_output(self) -> None:
        lines = self._output.lines()
        if len(lines) > MAX_LINES:
            lines[MAX_LINES:] = [f"... and {len(lines) - MAX_LINES} lines more in {self._output.path}"]
        if lines:
            self._log.warning("\n".join(lines))

    def _show(self, done: float, line: str) -> None:
        with contextlib.suppress(Exception):  # the next report tries again
            if self._artifact is None:
                created = create_progress_artifact(done * 100, description=line)
                self._artifact = created if isinstance(created, UUID) else None
            else:
                update_progress_artifact(self._artifact, done * 100, description=line)


def log_warnings(run: Run, step: str, artifact: Artifact) -> None:
    """Log what the report will warn of in a step, to the current task run."""
    with _errors_recorded(run, "warnings"):
        for sentence in warnings(RunRecord(run.folder, {step: artifact})):
            get_run_logger().warning(str(sentence))


class StepPages:
    """Pages of the steps as artifacts of their task runs, of one key for each recipe and step.

    They are made on other threads, one at a time, so that no step waits for pictures or for the server.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._one_at_a_time = threading.Lock()
        self._closed = False

    def show(self, run: Run, step: str, artifacts: Mapping[str, Artifact]) -> None:
        """Begin to create the page of a step for the current task run; `artifacts` are its inputs, and its own."""
        target, arguments = contextvars.copy_context().run, (self._show, run, step, artifacts)
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _show(self, run: Run, step: str, artifacts: Mapping[str, Artifact]) -> None:
        with self._one_at_a_time, _errors_recorded(run, f"page of {step}", lambda: not self._closed):
            if not self._closed:
                page = step_page(RunRecord(run.folder, artifacts), step)
                create_markdown_artifact(page.body, key=_key(run, step), description=page.card)

    def wait(self) -> None:
        """Wait until the pages are created; a server that does not answer is not waited for."""
        deadline = time.monotonic() + PAGES_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._closed = True


def _key(run: Run, name: str) -> str:
    """Return the key of an artifact: letters, digits and dashes, as Prefect asks for."""
    return re.sub(r"[^a-z0-9]+", "-", f"{run.recipe.name}-{name}".lower()).strip("-")


def show_results(run: Run, artifacts: Mapping[str, Artifact]) -> None:
    """Create a summary page and a table of `metrics.json` as artifacts of the current flow run."""
    with _errors_recorded(run, "report"):
        text = summary(RunRecord(run.folder, artifacts))
        create_markdown_artifact(text, key=_key(run, "report"), description=f"{run.recipe.name}: {run.folder}")
    if "evaluate" in artifacts:
        with _errors_recorded(run, "metrics"):
            records = artifacts["evaluate"].load("metrics.json", read_json)
            rows = [{column: record[column] for column in COLUMNS} for record in records]
            for row in rows:
                row["value"] = None if row["value"] is None else float(f"{row['value']:.4g}")
            create_table_artifact(rows, key=_key(run, "metrics"), description=f"{run.recipe.name}: {run.folder}")


@contextlib.contextmanager
def _errors_recorded(run: Run, what: str, is_wanted: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Record an error raised inside as an event of the run, and go on: the results are on disk."""
    try:
        yield
    except Exception as error:
        if is_wanted():
            run.record("prefect", error=f"no {what} shown: {type(error).__name__}: {error}")
