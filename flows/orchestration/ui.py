"""What Prefect's page shows of a run beside its states: how far the steps are, their warnings, what came out.

None of it is worth a run: what can't be shown is noted among the run's events.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
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
from flows.run.run import Run
from pipeline.steps.artifact import Artifact, read_json
from pipeline.steps.runtime import Runtime

EVERY_S = 5.0
"""Between updates of a step's bar in Prefect; steps that end sooner get none."""
LINE_EVERY_S = 30.0
"""Between lines in a step's log that say how far it is."""
MOST_LINES = 20
"""Of what a step printed, at a time."""
TRACEBACK = "Traceback (most recent call last):"
COLUMNS = ("task", "dataset", "split", "metric", "better", "model", "value", "n")
Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


@contextlib.contextmanager
def mirror_progress(run: Run, step: str) -> Iterator[Runtime]:
    """The run's runtime for a step whose progress the current task run shows as well: as a bar, and now and then as a
    line in its log. What the step prints, warnings of libraries among it, is in that log too.
    """
    mirror = _ProgressMirror(get_run_logger(), LogTail(run.log(step)))

    def progress(step: str, done: float, line: str) -> None:
        run.runtime.progress(step, done, line)
        mirror.latest = (done, line)

    # a thread of its own: training never waits for an answer; the context tells it which task run it belongs to
    follower = threading.Thread(target=contextvars.copy_context().run, args=(mirror.follow,), daemon=True)
    follower.start()
    try:
        yield dataclasses.replace(run.runtime, progress=progress)
    finally:
        mirror.ended.set()
        follower.join(EVERY_S)


class LogTail:
    """What is added to a file from now on, up to a traceback: the error that follows it is told by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = path.stat().st_size if path.exists() else 0
        self._over = False

    def lines(self) -> list[str]:
        """The whole lines that are new."""
        if self._over or not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self._at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        told, trace, _ = whole.decode("utf-8", "replace").partition(TRACEBACK)
        self._over = bool(trace)
        return [line for line in told.splitlines() if line.strip()]


class _ProgressMirror:
    """A progress artifact and a log that follow the latest report and what is printed."""

    def __init__(self, log: Log, printed: LogTail) -> None:
        self.latest: tuple[float, str] | None = None
        self.ended = threading.Event()
        self._log, self._printed = log, printed
        self._identity: UUID | None = None

    def follow(self) -> None:
        """Show what is new, until the step has ended."""
        shown, said = None, time.monotonic()
        while not self.ended.wait(EVERY_S):
            self._forward()
            if self.latest and self.latest != shown:
                shown = self.latest
                self._show(*shown)
                if time.monotonic() - said >= LINE_EVERY_S:
                    said = time.monotonic()
                    self._log.info("%.0f %%: %s", shown[0] * 100, shown[1])
        self._forward()
        if self._identity and self.latest:
            self._show(*self.latest)

    def _forward(self) -> None:
        lines = self._printed.lines()
        if len(lines) > MOST_LINES:
            lines[MOST_LINES:] = [f"... and {len(lines) - MOST_LINES} lines more in {self._printed.path}"]
        if lines:
            self._log.warning("\n".join(lines))

    def _show(self, done: float, line: str) -> None:
        with contextlib.suppress(Exception):  # the next report tries again
            if self._identity is None:
                made = create_progress_artifact(done * 100, description=line)
                self._identity = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(self._identity, done * 100, description=line)


def log_warnings(run: Run, step: str, artifact: Artifact) -> None:
    """What the report will warn of, as far as it lies in this step, in the current task run's log."""
    with _noting(run, "warnings"):
        for sentence in warnings(RunRecord(run.folder, {step: artifact})):
            get_run_logger().warning(str(sentence))


def show_results(run: Run, artifacts: Mapping[str, Artifact]) -> None:
    """A page on what came out, and the records of `metrics.json` as a table, as artifacts of the current flow run."""
    name = re.sub(r"[^a-z0-9]+", "-", run.recipe.name.lower()).strip("-")
    with _noting(run, "report"):
        text = summary(RunRecord(run.folder, artifacts))
        create_markdown_artifact(text, key=f"{name}-report", description=f"{run.recipe.name}: {run.folder}")
    if "evaluate" in artifacts:
        with _noting(run, "metrics"):
            records = artifacts["evaluate"].load("metrics.json", read_json)
            rows = [{**{column: record[column] for column in COLUMNS}, "value": _short(record)} for record in records]
            create_table_artifact(rows, key=f"{name}-metrics", description=f"{run.recipe.name}: {run.folder}")


def _short(record: Mapping[str, Any]) -> float | None:
    """Its value with as many digits as anybody reads."""
    return None if record["value"] is None else float(f"{record['value']:.4g}")


@contextlib.contextmanager
def _noting(run: Run, what: str) -> Iterator[None]:
    """Go on if something can't be shown: the results are on disk; that they are not shown is noted."""
    try:
        yield
    except Exception as error:
        run.event("prefect", error=f"no {what} shown: {type(error).__name__}: {error}")
