"""Render the report's HTML from the jinja2 templates beside this file, and hold the data of their tables.

Autoescape is on: any text that reaches a template is escaped, unless it is `Markup`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from evaluation.report.formatting import count, duration, percent, plural

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"count": count, "duration": duration, "percent": percent, "plural": plural}
_CONTROL = {code: "\ufffd" for code in (*range(9), 11, 12, *range(14, 32), 127)}
"""Control characters, which no page may hold: file names can."""


class StyledText(NamedTuple):
    """Text of a cell with a class of the style sheet, such as `good` or `soft`."""

    text: str
    style: str = ""


@dataclasses.dataclass(frozen=True)
class ReportTable:
    """A table of text. A line break in `head` stays one; columns in `numbers` are flush right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | StyledText]]
    numbers: Collection[int] = ()


def render(template: str, **values: Any) -> Markup:
    """Fill in a template of the folder `templates`."""
    return Markup(ENVIRONMENT.get_template(template).render(values))


def storable(text: str) -> str:
    """Replace what UTF-8 or a page can't hold: lone surrogates by their codes, control characters by U+FFFD."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").translate(_CONTROL)
