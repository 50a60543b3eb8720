"""The report's part on a comparison of methods: advice, one table, plots, and what it takes to reach an accuracy."""

from __future__ import annotations

from collections.abc import Iterator

from evaluation.backbone_table import Cell, MetricColumn
from evaluation.comparison.comparison import Comparison, ComparisonSetting, Row, read_comparisons
from evaluation.comparison.cost import Cost
from evaluation.measurement import best_of
from evaluation.report.backbones import cost_cells, scale_of, shown, titled
from evaluation.report.charts import Dot, lines_chart
from evaluation.report.html import Html, element, join
from evaluation.report.page import NOTHING, duration, listed, paragraph, plural, table
from evaluation.report.run_record import RunRecord
from pipeline.recipe.stage import SCRATCH


def comparisons(run: RunRecord) -> Html:
    """All of them; nothing if the run compared nothing."""
    return join([_comparison(name, found) for name, found in read_comparisons(run.artifacts).items()])


def _comparison(name: str, found: Comparison) -> Html:
    return join(
        [
            element("h3", name),
            *(paragraph(sentence) for sentence in found.advice()),
            paragraph(_explanation(found), class_="note"),
            _table(found),
            *_plots(found),
            *_costs(found),
            listed(f"{name}: {text}." for name, text in sorted(found.about.items())),
        ]
    )


def _explanation(found: Comparison) -> str:
    return (
        f"Measured on {plural(found.n, 'image')} of {found.place}; means and standard deviations over seeds, each with "
        "a training, images and labels of its own. All methods see the same images for the same number of steps, each "
        "in as many views as it takes; how many these were is in the table, small ones counted as others. A difference "
        "counts if it is larger than Tukey's range test allows at 95 %, on what is left of the variance without rows "
        "and seeds, and larger than 1.96 standard errors of shares of so many images. Views and time are those of one "
        "training."
    )


def _table(found: Comparison) -> Html:
    head = ["Row", "Backbone", "Share of images", "Steps", *(titled(column) for column in found.columns)]
    changes = [found.change(row, found.columns[0]) for row in found.rows]
    rows = [[*_where(row), *_values(found, row)] for row in found.rows]
    if any(changes):
        head.append("Change from the first method")
        rows = [[*row, _change(change, found.columns[0])] for row, change in zip(rows, changes, strict=True)]
    rows = [[*cells, *_effort(row)] for cells, row in zip(rows, found.rows, strict=True)]
    return table([*head, "Views", "Time"], rows, range(2, len(head) + 2))


def _change(change: Cell | None, column: MetricColumn) -> Html | str:
    return NOTHING if change is None else shown(change, column, best=False, sign="+")


def _where(row: Row) -> list[str]:
    share = NOTHING if row.setting.share is None else f"{row.setting.share:.0%}"
    steps = NOTHING if row.setting.steps is None else f"{row.setting.steps:,}"
    return [row.name, row.setting.backbone, share, steps]


def _values(found: Comparison, row: Row) -> Iterator[Html | str]:
    for column in found.columns:
        cells = [
            cell for each in found.rows if (cell := each.cell(column)) and each.setting.backbone == row.setting.backbone
        ]
        best = best_of(found.better[column.metric])(cell.mean for cell in cells)
        cell = row.cell(column)
        yield shown(cell, column, cell is not None and cell.mean == best)


def _effort(row: Row) -> list[str]:
    """Views and time."""
    return [f"{row.views:,}" if row.views else NOTHING, duration(row.cost.seconds) if row.cost.seconds else NOTHING]


def _plots(found: Comparison) -> Iterator[Html]:
    """A chart for each backbone and column: over the steps, over the images, where there are several of them."""
    charts = []
    for column in found.columns:
        for backbone in dict.fromkeys(setting.backbone for setting in found.settings()):
            mine = [setting for setting in found.settings() if setting.backbone == backbone]
            for share in sorted({setting.share or 0 for setting in mine}):
                along = [setting for setting in mine if setting.share == share]
                if len(along) > 1:
                    charts.append(_chart(found, along, column, "steps"))
            for steps in sorted({setting.steps or 0 for setting in mine}):
                along = [setting for setting in mine if setting.steps == steps]
                if len(along) > 1:
                    charts.append(_chart(found, along, column, "images"))
    if charts:
        yield element("div", *charts, class_="pairs")


def _chart(found: Comparison, along: list[ComparisonSetting], column: MetricColumn, axis: str) -> Html:
    scale = scale_of(column.metric)
    series: dict[str, list[Dot]] = {}
    levels: dict[str, float] = {}
    for setting in sorted(along, key=lambda each: (each.share or 0, each.steps or 0)):
        for row in found.side_by_side(setting):
            cell = row.cell(column)
            if cell is None:
                continue
            if row.setting.steps is None:
                levels[row.name] = scale * cell.mean
                continue
            x = float(setting.steps or 0) if axis == "steps" else 100 * (setting.share or 0)
            series.setdefault(row.name, []).append(Dot(x, scale * cell.mean, scale * (cell.deviation or 0)))
    first = along[0]
    fixed = f"{first.share:.0%} of the images" if axis == "steps" else f"{first.steps:,} steps"
    title = f"{first.backbone}, {fixed}: {column.metric} by {column.protocol}, {column.labels:,} labels"
    return lines_chart(title, series, levels, "steps" if axis == "steps" else "% of the images")


def _costs(found: Comparison) -> Iterator[Html]:
    """By the first column, if anything was trained from scratch."""
    if not any(row.start == SCRATCH and row.setting.steps for row in found.rows):
        return
    column = found.columns[0]
    head = ["Row", "Backbone", "Share", "To reach", "Steps", "Images", "Time", "Start: steps", "Images", "Time"]
    rows = []
    for backbone, share in dict.fromkeys((each.backbone, each.share or 1.0) for each in found.settings()):
        setting = ComparisonSetting(backbone, share, None)
        wanted = found.wanted(setting.backbone, setting.share, column)
        names = dict.fromkeys(
            (row.name, row.start)
            for row in found.rows
            if row.setting.backbone == setting.backbone and row.setting.share in (None, setting.share)
        )
        if wanted is None:
            continue
        for name, start in names:
            took = found.cost_to_reach(name, setting, column, wanted)
            before = cost_cells(found.base.get(start)) if start != SCRATCH else [NOTHING] * 3
            goal = f"{scale_of(column.metric) * wanted:.1f}"
            rows.append([name, setting.backbone, f"{share:.0%}", goal, *_reaching(took), *before])
    yield paragraph(
        "What it takes to reach the best that starts from scratch without labels, untrained or after a stage, and what "
        "the start took before:"
    )
    yield table(head, rows, range(2, len(head)))


def _reaching(took: Cost | None) -> list[str]:
    """Steps, images and time to the goal: none where a start is there as it is."""
    if took is None:
        return ["never", "", ""]
    return cost_cells(took) if took.steps else ["0", "0", NOTHING]
