"""Summarize a run in Markdown, for Prefect's page: its outcome, warnings, some of its labels, its steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from evaluation.backbone_table import has_measurements
from evaluation.comparison.comparison import comparison_advice
from evaluation.metric_table import fine_print, leading_lines, outcome_sentences, read_lines
from evaluation.report.figures import Picture
from evaluation.report.formatting import duration
from evaluation.report.html import ReportTable, storable
from evaluation.report.results import warnings
from evaluation.report.run_record import RunRecord
from evaluation.report.samples import RunSamples, pool_strips
from evaluation.report.step_tables import metrics_table

MAX_STRIPS = 4
"""Images of the pool whose labels are shown: few, as the page is kept in a database."""


def summary(run: RunRecord) -> str:
    """Return Markdown with the pictures in it. Without metrics or labels, their parts are missing."""
    return "\n\n".join([f"# {text(run.name)}", *_outcome(run), *_labels(run), *_steps(run), *_places(run)]) + "\n"


def _outcome(run: RunRecord) -> Iterator[str]:
    lines, _ = read_lines(run.metrics())
    if lines:
        yield from outcome_sentences(lines, run.home())
        yield fine_print(lines, run.home())
    yield from (text(sentence) for sentence in comparison_advice(run.artifacts))
    found = warnings(run)
    if found:
        yield "## Warnings"
        yield "\n".join(f"* {text(str(warning))}" for warning in found)
    if lines:
        yield "## Results"
        yield table(metrics_table(leading_lines(lines)))


def _labels(run: RunRecord) -> Iterator[str]:
    """Yield a table with a row for each image of the pool, and a column for each head."""
    strips = list(itertools.islice(pool_strips(RunSamples(run)), MAX_STRIPS)) if "label" in run.artifacts else []
    if strips:
        yield "## Labels"
        yield pictures(strips)


def _steps(run: RunRecord) -> Iterator[str]:
    yield "## Steps"
    rows = [
        [f"`{step.step}`", "reused" if step.reused else "made", duration(step.seconds), f"`{step.artifact.path}`"]
        for step in run.steps()
    ]
    yield _table(["step", "", "time to make", "artifact"], rows)


def _places(run: RunRecord) -> Iterator[str]:
    yield f"Run: `{run.folder}`"
    if has_measurements(run.artifacts) or "evaluate" in run.artifacts:
        yield f"Report, with curves and more pictures: `{run.folder / 'report.html'}`"


def pictures(strips: Sequence[Sequence[Picture]]) -> str:
    """Return a table with a row for each strip: an image, and its labels under the titles of the first strip's."""
    heads = ["image", *(text(picture.title) for picture in strips[0][1:])]
    return _table(heads, [[f"{image(each.title, each.url)} {text(each.note)}" for each in strip] for strip in strips])


def image(title: str, url: str) -> str:
    """Return an image, which may be a part of its URL."""
    return f"![{text(title)}]({url})"


def grid(images: Sequence[str], columns: int = 2) -> str:
    """Return images in rows of `columns`."""
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    return _table([""] * len(rows[0]), rows)


def table(data: ReportTable) -> str:
    """Return a table of text."""
    rows = [[text(cell if isinstance(cell, str) else cell.text) for cell in row] for row in data.rows]
    return _table([text(name) for name in data.head], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def text(written: str) -> str:
    """Return text with all signs escaped that mean something in Markdown or its tables."""
    signs = storable(written).replace("\n", " ")
    return "".join(f"\\{sign}" if sign in "\\`*_[]|#<&~" else sign for sign in signs)
