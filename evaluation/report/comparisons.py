"""The report's section on comparisons of methods: advice, scores, plots, and the cost to reach an accuracy."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from evaluation.backbone_table import MetricColumn
from evaluation.comparison.comparison import Comparison, ComparisonSetting, Row, read_comparisons
from evaluation.comparison.cost import Cost
from evaluation.learned_labels import FOOTNOTE
from evaluation.measurement import max_or_min
from evaluation.report.backbones import column_title, cost_cells, scale_of, score
from evaluation.report.charts import Dot, lines_chart
from evaluation.report.formatting import DASH, count, duration
from evaluation.report.html import ReportTable, StyledText, render
from evaluation.report.run_record import RunRecord
from pipeline.recipe.stage import SCRATCH


def comparisons(run: RunRecord) -> Markup:
    """Render every comparison of the run; nothing if there is none."""
    read = read_comparisons(run.artifacts).values()
    parts = [
        {
            "found": found,
            "scores": score_table(found),
            "footnote": FOOTNOTE if any(row.trained_on_labels for row in found.rows) else "",
            "plots": list(_plots(found)),
            "costs": cost_table(found),
        }
        for found in read
    ]
    return render("comparisons.html", comparisons=parts) if parts else Markup()


def score_table(found: Comparison) -> ReportTable:
    """Return the scores of all rows, with views and time of a training."""
    changes = [found.change(row, found.columns[0]) for row in found.rows]
    has_changes = any(changes)
    head = ["Row", "Backbone", "Share of images", "Steps", *map(column_title, found.columns)]
    head += [*(["Change from the first method"] if has_changes else []), "Views", "Time"]
    rows = [
        [
            *_setting_cells(row),
            *_scores(found, row),
            *([score(change, found.columns[0], is_best=False, sign="+")] if has_changes else []),
            count(row.views),
            duration(row.cost.seconds) if row.cost.seconds else DASH,
        ]
        for row, change in zip(found.rows, changes, strict=True)
    ]
    return ReportTable(head, rows, range(2, len(head)))


def _setting_cells(row: Row) -> list[str]:
    share = DASH if row.setting.share is None else f"{row.setting.share:.0%}"
    steps = DASH if row.setting.steps is None else f"{row.setting.steps:,}"
    return [row.marked_name, row.setting.backbone, share, steps]


def _scores(found: Comparison, row: Row) -> Iterator[StyledText | str]:
    for column in found.columns:
        rows = [other for other in found.rows if other.setting.backbone == row.setting.backbone]
        best = max_or_min(found.better[column.metric])(cell.mean for other in rows if (cell := other.cell(column)))
        cell = row.cell(column)
        yield score(cell, column, cell is not None and cell.mean == best)


def _plots(found: Comparison) -> Iterator[Markup]:
    """Yield a chart for each backbone and column: over the steps, over the images, where there are several of them."""
    for column in found.columns:
        for backbone in dict.fromkeys(setting.backbone for setting in found.settings()):
            settings = [setting for setting in found.settings() if setting.backbone == backbone]
            for axis, fixed in (("steps", "share"), ("images", "steps")):
                for value in sorted({getattr(setting, fixed) for setting in settings}):
                    same = [setting for setting in settings if getattr(setting, fixed) == value]
                    if len(same) > 1:
                        yield _chart(found, same, column, axis)


def _chart(found: Comparison, settings: list[ComparisonSetting], column: MetricColumn, axis: str) -> Markup:
    scale = scale_of(column.metric)
    series: dict[str, list[Dot]] = {}
    levels: dict[str, float] = {}
    for setting in sorted(settings, key=lambda setting: (setting.share or 0, setting.steps or 0)):
        for row in found.rows_in(setting):
            cell = row.cell(column)
            if cell is None:
                continue
            if row.setting.steps is None:
                levels[row.name] = scale * cell.mean
                continue
            x = float(setting.steps or 0) if axis == "steps" else 100 * (setting.share or 0)
            series.setdefault(row.name, []).append(Dot(x, scale * cell.mean, scale * (cell.deviation or 0)))
    first = settings[0]
    fixed = f"{first.share:.0%} of the images" if axis == "steps" else f"{first.steps:,} steps"
    title = f"{first.backbone}, {fixed}: {column.metric} by {column.protocol}, {column.labels:,} labels"
    return lines_chart(title, series, levels, "steps" if axis == "steps" else "% of the images")


def cost_table(found: Comparison) -> ReportTable | None:
    """Return what each row takes to reach the best from scratch by the first column; None if nothing was trained from
    scratch.
    """
    if not any(row.start == SCRATCH and row.setting.steps for row in found.rows):
        return None
    column = found.columns[0]
    head = ["Row", "Backbone", "Share", "To reach", "Steps", "Images", "Time", "Start: steps", "Images", "Time"]
    rows = []
    for backbone, share in dict.fromkeys((setting.backbone, setting.share or 1.0) for setting in found.settings()):
        setting = ComparisonSetting(backbone, share, None)
        goal = found.best_from_scratch(backbone, share, column)
        if goal is None:
            continue
        for name, start in dict.fromkeys((row.name, row.start) for row in found.rows_on(backbone, share)):
            cost = found.cost_to_reach(name, setting, column, goal)
            before = cost_cells(found.start_costs.get(start)) if start != SCRATCH else [DASH] * 3
            shown_goal = f"{scale_of(column.metric) * goal:.1f}"
            rows.append([name, backbone, f"{share:.0%}", shown_goal, *_reaching_cells(cost), *before])
    return ReportTable(head, rows, range(2, len(head)))


def _reaching_cells(cost: Cost | None) -> list[str]:
    """Return steps, images and time to the goal: none where a start reaches it untrained."""
    if cost is None:
        return ["never", "", ""]
    return cost_cells(cost) if cost.steps else ["0", "0", DASH]
