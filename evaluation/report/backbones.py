"""The report's section on backbones: what each scores on every set, and what it cost to train."""

from __future__ import annotations

from markupsafe import Markup

from evaluation.backbone_table import (
    BackboneTable,
    Cell,
    MetricColumn,
    backbone_tables,
    read_measurements,
    student_start,
)
from evaluation.comparison.cost import Cost, backbone_cost
from evaluation.learned_labels import FOOTNOTE
from evaluation.measurement import CLEAN
from evaluation.report.formatting import DASH, count, duration
from evaluation.report.html import ReportTable, StyledText, render
from evaluation.report.run_record import RunRecord

PERCENT_METRICS = ("accuracy", "map", "auroc", "miou", "pixel_accuracy", "ap", "ap50", "delta_1.25", "within_11.25")
"""Metrics in [0, 1], which are shown in percent."""


def backbones(run: RunRecord) -> Markup:
    """Render scores on every set and task, the protocols, and what the backbones cost; nothing without measurements."""
    measured = backbone_tables(read_measurements(run.artifacts))
    if not measured:
        return Markup()
    start = student_start(run.artifacts)
    return render(
        "backbones.html",
        boards=[(board, _score_table(board, start)) for board in measured],
        student_start=start,
        footnote=FOOTNOTE,
        costs=_cost_table(run),
        protocols={name: text for board in measured for name, text in board.about.items()},
    )


def _score_table(board: BackboneTable, student_start: str | None) -> ReportTable:
    head = ["Backbone", *map(column_title, board.columns)]
    rows = [
        [
            board.row_name(start, student_start),
            *(score(board.cells.get((start, column)), column, start in board.best(column)) for column in board.columns),
        ]
        for start in board.starts
    ]
    return ReportTable(head, rows, range(1, len(head)))


def column_title(column: MetricColumn) -> str:
    """Return a column's head, in three lines."""
    corrupted = "" if column.corruption == CLEAN else ", corrupted"
    return f"{column.protocol}\n{column.labels:,} labels{corrupted}\n{column.metric}"


def scale_of(metric: str) -> int:
    """Return what values of a metric are multiplied by to be shown."""
    return 100 if metric in PERCENT_METRICS else 1


def score(cell: Cell | None, column: MetricColumn, is_best: bool, sign: str = "") -> StyledText | str:
    """Return a mean and its deviation, in percent where the metric is a share; `sign` as in format specifications."""
    if cell is None:
        return DASH
    scale = scale_of(column.metric)
    digits = 1 if scale == 100 else 3
    deviation = "" if cell.deviation is None else f" ± {scale * cell.deviation:.{digits}f}"
    return StyledText(f"{scale * cell.mean:{sign}.{digits}f}{deviation}", "good" if is_best else "")


def _cost_table(run: RunRecord) -> ReportTable:
    head = ["Backbone", "steps", "images", "time", "before it: steps", "images", "time"]
    configs = [made.manifest["config"] for made in run.artifacts.values() if made.kind in ("probe", "finetune")]
    rows = []
    for name, start in {config["start"]["name"]: config["start"] for config in configs}.items():
        own, base = backbone_cost(run.artifacts.get(start["step"]), run.artifacts)
        rows.append([name, *cost_cells(None if start.get("weights") else own), *cost_cells(base)])
    return ReportTable(head, rows, range(1, len(head)))


def cost_cells(cost: Cost | None) -> list[str]:
    """Return steps, images and time; None stands for weights from elsewhere, whose cost is not known."""
    if cost is None:
        return ["not known", "", ""]
    return [count(cost.steps), count(cost.images), duration(cost.seconds) if cost != Cost() else DASH]
