"""What the command prints: progress while a run goes on, plans and results as tables."""

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

from cli.comparison_plan import Foreseen, foreseen, total
from evaluation.backbone_table import BackboneTable, Cell, MetricColumn, backbone_tables, read_measurements
from evaluation.comparison.comparison import Comparison, ComparisonSetting, read_comparisons
from evaluation.measurement import CLEAN
from evaluation.metric_table import ARROWS, ROLES, leading_lines, read_lines
from flows.plan.plan import Planned
from flows.run.run import Outcome
from flows.server.daemons import Services
from pipeline.errors import PROJECT
from pipeline.recipe.comparison import COMPARE, Trial, row_name
from pipeline.steps.artifact import Artifact, read_json
from pipeline.steps.runtime import Progress as Report
from pipeline.stores.naming import LABELLING

LINE_EVERY_S = 10.0
"""Between progress lines of one step where the output is not a terminal."""


class Console:
    """Standard output, as a terminal or as plain lines."""

    def __init__(self) -> None:
        self.out = rich.console.Console(highlight=False)

    @contextmanager
    def progress(self, stop: threading.Event | None = None) -> Iterator[Report]:
        """A live bar per step on a terminal, else a line now and then; and a word once `stop` is set."""
        over = threading.Event()
        if stop:
            threading.Thread(target=self._announce, args=(stop, over), daemon=True).start()
        try:
            with self._reports() as report:
                yield report
        finally:
            over.set()

    def _announce(self, stop: threading.Event, over: threading.Event) -> None:
        while not over.is_set():
            if stop.wait(0.1):
                self.out.print("Stopping as soon as a state to go on from is saved. Ctrl-C again ends at once.")
                return

    @contextmanager
    def _reports(self) -> Iterator[Report]:
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
                    bars.begin()
        else:
            yield _Lines(self.out)

    def show_plan(self, planned: list[Planned]) -> None:
        """A line for every step; for those of comparisons one for every row."""
        table = Table(tables.Column("step", overflow="fold"), "", "why", box=None, pad_edge=False)
        rows = foreseen(planned)
        for each in planned:
            if not (rows and each.step.name.startswith(f"{COMPARE}.")):
                action = Text(each.action, "green" if each.artifact else "yellow")
                table.add_row(each.step.name, action, Text(each.why))  # Text: a value in brackets is no markup
        self.out.print(table)
        for name, found in rows.items():
            self.out.print()
            self.out.print(foreseen_table(name, found))
            self.out.print(total(found))

    def show_outcome(self, outcome: Outcome) -> None:
        """What the last step that the run was about came to."""
        last, artifact = list(outcome.artifacts.items())[-1]
        if not outcome.ran:
            self.out.print("Nothing to do: every step's result is there. The results:")
        if outcome.measures:
            if "evaluate" in outcome.artifacts:
                self.out.print(results_table(outcome))
            for board in backbone_tables(read_measurements(outcome.artifacts)):
                self.out.print(backbones_table(board))
            for name, comparison in read_comparisons(outcome.artifacts).items():
                self.out.print(comparison_table(name, comparison))
                for sentence in comparison.advice():
                    self.out.print(sentence)
        elif last in LABELLING:
            self.out.print(labels_table(outcome.artifacts[last]))
        else:
            self.out.print(f"{last}: {artifact}", soft_wrap=True)
        if outcome.folder and outcome.measures:
            self.out.print(f"Report: {outcome.folder / 'report.html'}", soft_wrap=True)

    def show_up(self, services: Services) -> None:
        """Where to look, and what to do next."""
        prefect = Path(sys.executable).with_name("prefect")
        with contextlib.suppress(ValueError):
            prefect = prefect.relative_to(Path.cwd())
        lines = [
            f"Prefect is up: {services.page}",
            "Start a run there, under Deployments, or here:",
            f"    export PREFECT_API_URL={services.url}",
            f"    {prefect} deployment run selftrain/must --watch",
            f"Relative paths of such runs begin in {PROJECT}.",
        ]
        self.out.print("\n".join(lines), soft_wrap=True)

    def show_status(self, found: Mapping[str, Any]) -> None:
        """What `must status` found."""
        about = Table(box=None, pad_edge=False, show_header=False)
        for name in ("server", "worker"):
            about.add_row(name, _service_line(found, name))
        about.add_row("deployments", ", ".join(found["deployments"]) or "none")
        for run in found["runs"]:
            steps = ", ".join(run["steps"]) or run["state"]
            about.add_row("at work", f"{run['flow']} {run['name']}: {steps}, since {_moment(run['since'])}")
        about.add_row("waiting", str(found["waiting"]))
        self.out.print(about, soft_wrap=True)


def _service_line(found: Mapping[str, Any], name: str) -> str:
    service = found[name]
    if service is None:
        theirs = name == "server" and not found["own_server"]
        return f"{found['url']} (not ours)" if theirs else "not up; `must up` starts it"
    where = f"{found['page']}, " if name == "server" else ""
    state = f"up since {_moment(service['since'])}" if service["alive"] else "ended; `must up` starts it again"
    silent = ", but does not answer" if name == "server" and service["alive"] and not found["answers"] else ""
    return f"{where}{state}{silent}, process {service['process']}, log {service['log']}"


def _moment(since: str) -> str:
    """A time in UTC as the clock on the wall shows it."""
    return f"{datetime.datetime.fromisoformat(since).astimezone():%Y-%m-%d %H:%M}" if since else "now"


def labels_table(made: Artifact) -> Table:
    """A line per teacher: how much it labelled, and the files that hold it."""
    table = Table("teacher", "images", "failed", "labels", box=None, pad_edge=False)
    entries = made.load("labels.json", read_json)
    for teacher in dict.fromkeys(entry["teacher"] for entry in entries):
        mine = [entry for entry in entries if entry["teacher"] == teacher]
        rows, failed = (sum(entry[key] for entry in mine) for key in ("rows", "failed"))
        table.add_row(teacher, str(rows), str(failed), f"{made.external_file(mine[0]['path']).path.parent}/*.parquet")
    return table


def results_table(outcome: Outcome) -> Table:
    """Student, teacher and trivial baseline by the leading metric of each teacher's task; fits 80 columns."""
    table = Table("teacher", "measured on", "metric", *ROLES, box=None, pad_edge=False)
    lines, _ = read_lines(outcome.metrics)
    for line in leading_lines(lines):
        place, arrow = line.target, ARROWS[line.better]
        values = [f"{line.values[role]:.3f}" if role in line.values else "-" for role in ROLES]
        name = place.head if place.head == place.task else f"{place.head} ({place.task})"
        table.add_row(Text(name), Text(place.dataset), f"{line.metric} {arrow}", *values)
    return table


def backbones_table(board: BackboneTable) -> Table:
    """Every backbone on one set and task, by its means."""
    title = f"{board.dataset}: {board.task}, {board.n:,} images"
    heads = [_head(column, board.better) for column in board.columns]
    table = Table("backbone", *heads, title=title, title_justify="left", box=None, pad_edge=False)
    for start in board.starts:
        table.add_row(start, *(_mean(board.cells.get((start, column))) for column in board.columns))
    return table


def foreseen_table(name: str, rows: Sequence[Foreseen]) -> Table:
    """Every row of a comparison with the number of its seeds for which there is something to run, and why."""
    heads = ("row", "backbone", "images", "steps", "run seeds", "why")
    table = Table(*heads, title=f"{COMPARE}.{name}:", title_justify="left", box=None, pad_edge=False)
    for row in rows:
        amount = Text(row.amount, "yellow" if row.to_run else "green")
        table.add_row(row_name(row.trial.method, row.trial.start), *_where(row.trial), amount, Text(row.why))
    return table


def _where(setting: ComparisonSetting | Trial) -> list[str]:
    """Backbone, share of the images and steps."""
    share = "-" if setting.share is None else f"{setting.share:.0%}"
    return [setting.backbone, share, str(setting.steps or "-")]


def comparison_table(name: str, found: Comparison) -> Table:
    """Every row of a comparison by its means."""
    heads = [_head(column, found.better) for column in found.columns]
    title = f"{name}: {found.dataset_split}, {found.n:,} images"
    table = Table(
        "row", "backbone", "images", "steps", *heads, title=title, title_justify="left", box=None, pad_edge=False
    )
    for row in found.rows:
        cells = [row.cell(column) for column in found.columns]
        table.add_row(row.name, *_where(row.setting), *(_mean(cell) for cell in cells))
    return table


def _head(column: MetricColumn, better: Mapping[str, str]) -> str:
    worse = "" if column.corruption == CLEAN else ", corrupted"
    return f"{column.protocol}\n{column.labels:,} labels{worse}\n{column.metric} {ARROWS[better[column.metric]]}"


def _mean(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.mean:.3f}" if cell.deviation is None else f"{cell.mean:.3f} ± {cell.deviation:.3f}"


class _Bars:
    def __init__(self, live: Progress) -> None:
        self._live = live
        self._bars: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self._waiting: TaskID | None = live.add_task("starting", total=None, line="loading code")

    def begin(self) -> None:
        """Nothing is waited for any more."""
        if self._waiting is not None:
            self._live.remove_task(self._waiting)
            self._waiting = None

    def __call__(self, step: str, done: float, line: str) -> None:
        with self._lock:
            self.begin()
            if step not in self._bars:
                self._bars[step] = self._live.add_task(step, total=1.0, line="")
            self._live.update(self._bars[step], completed=done, line=line)


class _Lines:
    def __init__(self, out: rich.console.Console) -> None:
        self._out = out
        self._last: dict[str, float] = {}

    def __call__(self, step: str, done: float, line: str) -> None:
        now = time.monotonic()
        if done >= 1 or now - self._last.get(step, -LINE_EVERY_S) >= LINE_EVERY_S:
            self._last[step] = now
            self._out.print(f"{step} {done:.0%} {line}")
