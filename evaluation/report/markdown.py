"""A run as Markdown, for places that show no other page: its outcome, warnings, some of its labels, its steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from evaluation.backbone_table import any_measured
from evaluation.comparison.comparison import advised
from evaluation.metric_table import ARROWS, ROLES, Line, fine_print, leading, outcome, read_lines
from evaluation.report.figures import Picture, data_url
from evaluation.report.html import escape, plain
from evaluation.report.page import NOTHING, duration
from evaluation.report.results import warnings
from evaluation.report.run_record import RunRecord
from evaluation.report.samples import Album, pool_strips

MOST_STRIPS = 4
"""Images of the pool whose labels are shown: the page is kept in a database."""


def summary(run: RunRecord) -> str:
    """Markdown with the pictures in it. Without metrics or labels, their parts are missing."""
    return "\n\n".join([f"# {_text(run.name)}", *_outcome(run), *_labels(run), *_steps(run), *_places(run)]) + "\n"


def _outcome(run: RunRecord) -> Iterator[str]:
    lines, _ = read_lines(run.metrics())
    if lines:
        yield from outcome(lines, run.home())
        yield fine_print(lines, run.home())
    yield from (_text(sentence) for sentence in advised(run.artifacts))
    cautions = warnings(run)
    if cautions:
        yield "## Warnings"
        yield "\n".join(f"* {_text(plain(caution))}" for caution in cautions)
    if lines:
        yield "## Results"
        yield _table(["teacher", "measured on", "metric", *ROLES], [_measured(line) for line in leading(lines)])


def _measured(line: Line) -> list[str]:
    place = line.place
    numbers = [f"{line.values[role]:.3f}" if role in line.values else NOTHING for role in ROLES]
    return [
        _text(f"{place.head} ({place.task})"),
        _text(place.dataset),
        f"{line.metric} {ARROWS[line.better]}",
        *numbers,
    ]


def _labels(run: RunRecord) -> Iterator[str]:
    """A table whose rows are images of the pool, and whose columns what each head learns from them."""
    strips = list(itertools.islice(pool_strips(Album(run)), MOST_STRIPS)) if "label" in run.artifacts else []
    if strips:
        yield "## Labels"
        heads = ["image", *(_text(picture.title) for picture in strips[0][1:])]
        yield _table(heads, [[_drawn(picture) for picture in strip] for strip in strips])


def _drawn(picture: Picture) -> str:
    return f"![{_text(picture.title)}]({data_url(picture.image)}) {_text(picture.note)}"


def _steps(run: RunRecord) -> Iterator[str]:
    yield "## Steps"
    rows = [
        [f"`{done.step}`", "reused" if done.reused else "made", duration(done.seconds), f"`{done.artifact.path}`"]
        for done in run.steps()
    ]
    yield _table(["step", "", "time to make", "artifact"], rows)


def _places(run: RunRecord) -> Iterator[str]:
    yield f"Run: `{run.folder}`"
    if any_measured(run.artifacts) or "evaluate" in run.artifacts:
        yield f"Report, with curves and more pictures: `{run.folder / 'report.html'}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: str) -> str:
    """Text that neither Markdown nor a table takes for a sign of its own."""
    storable = plain(escape(text)).replace("\n", " ")
    return "".join(f"\\{sign}" if sign in "\\`*_[]|#<&~" else sign for sign in storable)
