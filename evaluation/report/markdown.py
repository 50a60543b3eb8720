"""Summarize a run in Markdown, for Prefect's page: its outcome, warnings, some of its labels, its steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from evaluation.backbone_table import has_measurements
from evaluation.comparison.comparison import comparison_advice
from evaluation.metric_table import ARROWS, ROLES, MetricLine, fine_print, leading_lines, outcome_sentences, read_lines
from evaluation.report.formatting import DASH, duration
from evaluation.report.html import storable
from evaluation.report.results import warnings
from evaluation.report.run_record import RunRecord
from evaluation.report.samples import RunSamples, pool_strips

MAX_STRIPS = 4
"""Images of the pool whose labels are shown: few, as the page is kept in a database."""


def summary(run: RunRecord) -> str:
    """Return Markdown with the pictures in it. Without metrics or labels, their parts are missing."""
    return "\n\n".join([f"# {_text(run.name)}", *_outcome(run), *_labels(run), *_steps(run), *_places(run)]) + "\n"


def _outcome(run: RunRecord) -> Iterator[str]:
    lines, _ = read_lines(run.metrics())
    if lines:
        yield from outcome_sentences(lines, run.home())
        yield fine_print(lines, run.home())
    yield from (_text(sentence) for sentence in comparison_advice(run.artifacts))
    found = warnings(run)
    if found:
        yield "## Warnings"
        yield "\n".join(f"* {_text(str(warning))}" for warning in found)
    if lines:
        yield "## Results"
        yield _table(["teacher", "measured on", "metric", *ROLES], [_measured(line) for line in leading_lines(lines)])


def _measured(line: MetricLine) -> list[str]:
    place = line.target
    numbers = [f"{line.values[role]:.3f}" if role in line.values else DASH for role in ROLES]
    return [
        _text(f"{place.head} ({place.task})"),
        _text(place.dataset),
        f"{line.metric} {ARROWS[line.better]}",
        *numbers,
    ]


def _labels(run: RunRecord) -> Iterator[str]:
    """Yield a table with a row for each image of the pool, and a column for each head."""
    strips = list(itertools.islice(pool_strips(RunSamples(run)), MAX_STRIPS)) if "label" in run.artifacts else []
    if strips:
        yield "## Labels"
        heads = ["image", *(_text(picture.title) for picture in strips[0][1:])]
        rows = [[f"![{_text(each.title)}]({each.url}) {_text(each.note)}" for each in strip] for strip in strips]
        yield _table(heads, rows)


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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: str) -> str:
    """Return text with all signs escaped that mean something in Markdown or its tables."""
    signs = storable(text).replace("\n", " ")
    return "".join(f"\\{sign}" if sign in "\\`*_[]|#<&~" else sign for sign in signs)
