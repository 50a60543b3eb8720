"""Print a run's progress, plans, results and the state of the server in the terminal."""

from __future__ import annotations

import contextlib
import datetime
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.console
from rich import table as tables
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cli.comparison_plan import PlannedRow, planned_rows, summarize_work
from evaluation.backbone_table import (
    BackboneTable,
    Cell,
    MetricColumn,
    backbone_tables,
    read_measurements,
    student_start,
)
from evaluation.comparison.comparison import Comparison, ComparisonSetting, read_comparisons
from evaluation.learned_labels import FOOTNOTE
from evaluation.measurement import CLEAN
from evaluation.metric_table import ARROWS, ROLES, leading_lines, read_lines
from evaluation.report.formatting import plural
from evaluation.report.results import lost_labels, warnings
from evaluation.report.run_record import RunRecord
from evaluation.report.step_tables import labels_by_maker
from flows.plan.plan import Planned
from flows.run.run import Outcome
from flows.server.daemons import Services
from pipeline.errors import PROJECT
from pipeline.recipe.comparison import COMPARE, Trial, row_name
from pipeline.steps.artifact import Artifact
from pipeline.steps.runtime import Progress as ProgressCallback
from pipeline.stores.naming import labels_pool

MOST_WARNINGS = 10
"""Warnings at the end of a run; its report has them all."""
LINE_EVERY_S = 10.0
"""Seconds between progress lines of one step if the output is not a terminal."""


class Console:
    """Standard output, either a terminal or plain lines."""

    def __init__(self) -> None:
        self.out = rich.console.Console(highlight=False)

    @contextmanager
    def progress(self, stop: threading.Event | None = None) -> Iterator[ProgressCallback]:
        """Yield a callback that shows a live bar per step, or lines without a terminal; announce when `stop` is set."""
        done = threading.Event()
        if stop:
            threading.Thread(target=self._announce, args=(stop, done), daemon=True).start()
        try:
            with self._show_progress() as callback:
                yield callback
        finally:
            done.set()

    def _announce(self, stop: threading.Event, done: threading.Event) -> None:
        while not done.is_set():
            if stop.wait(0.1):
                self.out.print(
                    "Stopping once the state is saved, so that the run can go on later. Ctrl-C again to quit now."
                )
                return

    @contextmanager
    def _show_progress(self) -> Iterator[ProgressCallback]:
        if self.out.is_terminal:
            columns = (
                TextColumn("{task.description:24}"),
                BarColumn(30),
                TextColumn("{task.fields[line]}"),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self.out) as live:
                bars = _Bars(live)
                try:
                    yield bars
                finally:
                    bars.remove_start_bar()
        else:
            yield _Lines(self.out)

    def show_plan(self, planned: list[Planned]) -> None:
        """Print a line per step, and for comparisons a line per row."""
        table = Table(tables.Column("step", overflow="fold"), "", "why", box=None, pad_edge=False)
        comparisons = planned_rows(planned)
        in_rows = {name for rows in comparisons.values() for row in rows for name in row.steps}
        for entry in planned:
            if entry.step.name not in in_rows:
                action = Text(entry.action, "green" if entry.artifact else "yellow")
                table.add_row(entry.step.name, action, Text(entry.why))  # Text: brackets are not markup
        self.out.print(table)
        for name, rows in comparisons.items():
            self.out.print()
            self.out.print(comparison_plan_table(name, rows))
            self.out.print(summarize_work(rows))

    def show_outcome(self, outcome: Outcome) -> None:
        """Print the results of a run, or of its last step if that is not an evaluation."""
        last, artifact = list(outcome.artifacts.items())[-1]
        if not outcome.ran:
            self.out.print("Nothing to do: every step has its result. The results:")
        self._show_warnings(outcome)
        if outcome.measures:
            if "evaluate" in outcome.artifacts:
                self.out.print(results_table(outcome))
            for board in backbone_tables(read_measurements(outcome.artifacts)):
                self.out.print(backbones_table(board, student_start(outcome.artifacts)))
            for name, comparison in read_comparisons(outcome.artifacts).items():
                self.out.print(comparison_table(name, comparison))
                for sentence in comparison.advice():
                    self.out.print(sentence)
        elif labels_pool(last):
            self.out.print(labels_table(outcome.artifacts[last]))
        else:
            self.out.print(f"{last}: {artifact}", soft_wrap=True)
        if outcome.folder and outcome.measures:
            self.out.print(f"Report: {outcome.folder / 'report.html'}", soft_wrap=True)

    def _show_warnings(self, outcome: Outcome) -> None:
        """Print the warnings of a run, those of its report, or as many as are read at a glance."""
        if outcome.folder is None:  # nothing was run, and nothing measured
            found = list(lost_labels(outcome.artifacts))
        else:
            found = [str(warning) for warning in warnings(RunRecord(outcome.folder, outcome.artifacts))]
        for sentence in found[:MOST_WARNINGS]:
            self.out.print(Text(sentence, "yellow"))
        more = len(found) - MOST_WARNINGS
        if more > 0:
            where = "the report has all of them" if outcome.measures else "a run that measures has them in its report"
            self.out.print(Text(f"{plural(more, 'further warning')}: {where}.", "yellow"))

    def show_up(self, services: Services) -> None:
        """Print the address of the server that `must up` started, and how to start a run."""
        prefect = Path(sys.executable).with_name("prefect")
        with contextlib.suppress(ValueError):
            prefect = prefect.relative_to(Path.cwd())
        lines = [
            f"Prefect is up: {services.page}",
            "Start a run there, under Deployments, or here:",
            f"    export PREFECT_API_URL={services.url}",
            f"    {prefect} deployment run selftrain/must --watch",
            f"Relative paths in such runs start from {PROJECT}.",
        ]
        self.out.print("\n".join(lines), soft_wrap=True)

    def show_status(self, status: Mapping[str, Any]) -> None:
        """Print what `must status` found."""
        table = Table(box=None, pad_edge=False, show_header=False)
        for name in ("server", "worker"):
            table.add_row(name, _service_line(status, name))
        if status["problem"]:
            table.add_row("problem", status["problem"])
        else:
            table.add_row("deployments", ", ".join(status["deployments"]) or "none")
            for run in status["runs"]:
                steps = ", ".join(run["steps"]) or run["state"]
                table.add_row("at work", f"{run['flow']} {run['name']}: {steps}, since {_moment(run['since'])}")
            table.add_row("waiting", str(status["waiting"]))
        self.out.print(table, soft_wrap=True)


def _service_line(status: Mapping[str, Any], name: str) -> str:
    service = status[name]
    if service is None:
        external = name == "server" and not status["own_server"]
        return f"{status['url']} (not started by `must up`)" if external else "not up; `must up` starts it"
    page = f"{status['page']}, " if name == "server" else ""
    state = f"up since {_moment(service['since'])}" if service["alive"] else "ended; `must up` starts it again"
    return f"{page}{state}, process {service['process']}, log {service['log']}"


def _moment(since: str) -> str:
    """Format a time in ISO form and UTC as local time."""
    return f"{datetime.datetime.fromisoformat(since).astimezone():%Y-%m-%d %H:%M}" if since else "now"


def labels_table(artifact: Artifact) -> Table:
    """Return a table of each teacher's labels: how many, and in which files."""
    table = Table("teacher", "images", "failed", "labels", box=None, pad_edge=False)
    for each in labels_by_maker(artifact):
        table.add_row(each.maker, str(each.images), str(each.failed), f"{each.folder}/*.parquet")
    return table


def results_table(outcome: Outcome) -> Table:
    """Return a table of student, teacher and baseline, by the leading metric of each task; it fits 80 columns."""
    table = Table("teacher", "measured on", "metric", *ROLES, box=None, pad_edge=False)
    lines, _ = read_lines(outcome.metrics)
    for line in leading_lines(lines):
        target, arrow = line.target, ARROWS[line.better]
        values = [f"{line.values[role]:.3f}" if role in line.values else "-" for role in ROLES]
        name = target.head if target.head == target.task else f"{target.head} ({target.task})"
        table.add_row(Text(name), Text(target.dataset), f"{line.metric} {arrow}", *values)
    return table


def backbones_table(board: BackboneTable, student_start: str | None = None) -> Table:
    """Return a table of the mean metrics of all backbones on one set and task."""
    title = f"{board.dataset}: {board.task}, {board.n:,} images"
    heads = [_head(column, board.better) for column in board.columns]
    table = Table("backbone", *heads, title=title, title_justify="left", box=None, pad_edge=False)
    for start in board.starts:
        name = Text(board.row_name(start, student_start))
        table.add_row(name, *(_mean(board.cells.get((start, column))) for column in board.columns))
    if board.trained_on_labels:
        table.caption, table.caption_justify = FOOTNOTE, "left"
    return table


def comparison_plan_table(name: str, rows: Sequence[PlannedRow]) -> Table:
    """Return a table of a comparison's rows: for how many seeds something is to run, and why."""
    heads = ("row", "backbone", "images", "steps", "run seeds", "why")
    table = Table(*heads, title=f"{COMPARE}.{name}:", title_justify="left", box=None, pad_edge=False)
    for row in rows:
        seeds = Text(row.run_seeds, "yellow" if row.to_run else "green")
        table.add_row(row_name(row.trial.method, row.trial.start), *_setting_cells(row.trial), seeds, Text(row.why))
    return table


def _setting_cells(setting: ComparisonSetting | Trial) -> list[str]:
    """Return the cells for backbone, share of the images and steps."""
    share = "-" if setting.share is None else f"{setting.share:.0%}"
    return [setting.backbone, share, str(setting.steps or "-")]


def comparison_table(name: str, comparison: Comparison) -> Table:
    """Return a table of the mean metrics of a comparison's rows."""
    heads = [_head(column, comparison.better) for column in comparison.columns]
    title = f"{name}: {comparison.dataset_split}, {comparison.n:,} images"
    table = Table(
        "row", "backbone", "images", "steps", *heads, title=title, title_justify="left", box=None, pad_edge=False
    )
    for row in comparison.rows:
        cells = [row.cell(column) for column in comparison.columns]
        table.add_row(row.marked_name, *_setting_cells(row.setting), *(_mean(cell) for cell in cells))
    if any(row.trained_on_labels for row in comparison.rows):
        table.caption, table.caption_justify = FOOTNOTE, "left"
    return table


def _head(column: MetricColumn, better: Mapping[str, str]) -> str:
    corrupted = "" if column.corruption == CLEAN else ", corrupted"
    return f"{column.protocol}\n{column.labels:,} labels{corrupted}\n{column.metric} {ARROWS[better[column.metric]]}"


def _mean(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.mean:.3f}" if cell.deviation is None else f"{cell.mean:.3f} ± {cell.deviation:.3f}"


class _Bars:
    """Progress callback for a terminal: a live bar per step."""

    def __init__(self, live: Progress) -> None:
        self._live = live
        self._bars: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self._start_bar: TaskID | None = live.add_task("starting", total=None, line="loading code")

    def remove_start_bar(self) -> None:
        """Remove the bar that is shown until the first step reports."""
        if self._start_bar is not None:
            self._live.remove_task(self._start_bar)
            self._start_bar = None

    def __call__(self, step: str, done: float, line: str) -> None:
        with self._lock:
            self.remove_start_bar()
            if step not in self._bars:
                self._bars[step] = self._live.add_task(step, total=1.0, line="")
            self._live.update(self._bars[step], completed=done, line=line)


class _Lines:
    """Progress callback for a file or pipe: a line per step now and then."""

    def __init__(self, out: rich.console.Console) -> None:
        self._out = out
        self._last: dict[str, float] = {}

    def __call__(self, step: str, done: float, line: str) -> None:
        now = time.monotonic()
        if done >= 1 or now - self._last.get(step, -LINE_EVERY_S) >= LINE_EVERY_S:
            self._last[step] = now
            self._out.print(f"{step} {done:.0%} {line}")
