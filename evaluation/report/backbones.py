"""The report's part on backbones: what each is worth on every set, and what it cost to come by."""

from __future__ import annotations

from collections.abc import Iterator

from evaluation.backbone_table import Board, Cell, MetricColumn, boards, read_measured
from evaluation.comparison.cost import Cost, price
from evaluation.measurement import CLEAN
from evaluation.report.html import Html, element, join
from evaluation.report.page import NOTHING, duration, listed, paragraph, plural, table
from evaluation.report.run_record import RunRecord

BREAK = Html("<br>")
SCALED = ("accuracy", "miou", "pixel_accuracy", "ap", "ap50", "delta_1.25", "within_11.25")
"""Metrics in [0, 1], which are shown in percent."""


def backbones(run: RunRecord) -> Html:
    """A table for every set and task, what the protocols are, and what the backbones cost. Nothing if none was
    measured.
    """
    found = boards(read_measured(run.artifacts))
    if not found:
        return Html()
    parts = [paragraph(_explanation(), class_="note")]
    for board in found:
        parts += [
            element("h3", f"{board.dataset}: {board.task}"),
            _table(board),
            paragraph(_where(board), class_="note"),
        ]
    parts += [element("h3", "What the backbones cost"), _costs(run), listed(_protocols(found))]
    return join([*parts, *(paragraph(why, class_="note") for why in _skipped(run))])


def _explanation() -> str:
    return (
        "The same images, labels and protocol for every backbone; the mean, and the standard deviation over the seeds "
        "if there are several. A seed draws its own labels, the same for all backbones. The best mean of a column "
        "is in bold, which does not say that it is better than the others by more than chance."
    )


def _table(board: Board) -> Html:
    head = ["Backbone", *(titled(column) for column in board.columns)]
    rows = [
        [
            start,
            *(shown(board.cells.get((start, column)), column, start in board.best(column)) for column in board.columns),
        ]
        for start in board.starts
    ]
    return table(head, rows, range(1, len(head)))


def titled(column: MetricColumn) -> Html:
    """A column's head."""
    worse = "" if column.corruption == CLEAN else ", corrupted"
    return element("span", column.protocol, BREAK, f"{column.labels:,} labels{worse}", BREAK, column.metric)


def scale_of(metric: str) -> int:
    """What values are multiplied by to be shown."""
    return 100 if metric in SCALED else 1


def shown(cell: Cell | None, column: MetricColumn, best: bool, sign: str = "") -> Html | str:
    """A mean and its deviation, in percent where the metric is a share; `sign` as in format specifications."""
    if cell is None:
        return NOTHING
    scale = scale_of(column.metric)
    digits = 1 if scale == 100 else 3
    spread = "" if cell.deviation is None else f" ± {scale * cell.deviation:.{digits}f}"
    return element("span", f"{scale * cell.mean:{sign}.{digits}f}{spread}", class_="good" if best else None)


def _where(board: Board) -> str:
    return f"Measured on {plural(board.n, 'image')} of {board.dataset}/{board.split}."


def _protocols(found: list[Board]) -> Iterator[str]:
    about = {name: text for board in found for name, text in board.about.items()}
    yield from (f"{name}: {text}." for name, text in sorted(about.items()))


def _costs(run: RunRecord) -> Html:
    head = ["Backbone", "steps", "images", "time", "before it: steps", "images", "time"]
    starts = {
        made.manifest["config"]["start"]["name"]: made.manifest["config"]["start"]
        for kind in ("probe", "finetune")
        for made in run.of_kind(kind).values()
    }
    rows = []
    for name, start in starts.items():
        own, base = price(run.artifacts.get(start["step"]), run.artifacts)
        rows.append([name, *cost_cells(None if start.get("weights") else own), *cost_cells(base)])
    return table(head, rows, range(1, len(head)))


def cost_cells(cost: Cost | None) -> list[str]:
    """Steps, images and time; None for what was made elsewhere."""
    if cost is None:
        return ["not known", "", ""]
    numbers = [f"{number:,}" if number else NOTHING for number in (cost.steps, cost.images)]
    return [*numbers, duration(cost.seconds) if cost != Cost() else NOTHING]


def _skipped(run: RunRecord) -> Iterator[str]:
    sets = {
        made.manifest["config"]["set"]: made.counts["why"]
        for made in run.of_kind("probe").values()
        if "why" in made.counts
    }
    yield from (f"Not probed on {name}: {why}." for name, why in sets.items())
