"""The report's section on rounds of self-training: how teachers and students compare, head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from evaluation.metric_table import read_lines
from evaluation.report.formatting import DASH
from evaluation.report.html import ReportTable, StyledText, render
from evaluation.report.run_record import RunRecord

KIND = "label_choice"
"""The kind of step that decides who labels the next round."""


def rounds(run: RunRecord) -> Markup:
    """Render by head the metric of its teacher and of every round's student, and who labelled for the last one."""
    choices = [made for made in run.artifacts.values() if made.kind == KIND]
    if not choices:
        return Markup()
    students = [made.manifest["config"]["labeller"] for made in choices]
    last, labellers = _measured(run), ["its teacher", *students]
    by_head = {head: [made.counts["rounds"][head] for made in choices] for head in choices[0].counts["rounds"]}
    rows = [_row(head, found, labellers, last) for head, found in by_head.items()]
    columns = ["Head", "Metric", "Measured on", "Teacher", *students, "student", "Labels of the last round by"]
    return render("rounds.html", values=ReportTable(columns, rows, range(3, 5 + len(students))))


def _row(
    head: str, found: Sequence[Mapping[str, Any]], labellers: Sequence[str], last: Mapping[tuple[str, ...], float]
) -> list[StyledText | str]:
    """Return the line of a head: of its teacher, and of each round's student by what was `found` of it."""
    first = found[0]
    if first["metric"] is None:
        return [head, DASH, DASH, *[DASH] * (len(found) + 2), f"its teacher: {first['why']}"]
    by = max((number for number, each in enumerate(found, start=1) if each["by_student"]), default=0)
    values = [first["before"], *(each["student"] for each in found)]
    cells: list[StyledText | str] = [f"{value:.3f}" for value in values]
    cells[by] = StyledText(f"{values[by]:.3f}", "good")
    images = first["dataset"], first["split"]
    end = last.get((head, first["metric"], *images))
    return [head, first["metric"], "/".join(images), *cells, DASH if end is None else f"{end:.3f}", labellers[by]]


def _measured(run: RunRecord) -> Mapping[tuple[str, ...], float]:
    """Return what the last student reaches, by head, metric, set and split."""
    lines, _ = read_lines(run.metrics())
    return {
        (line.target.head, line.metric, line.target.dataset, line.target.split): line.values["student"]
        for line in lines
        if "student" in line.values
    }
