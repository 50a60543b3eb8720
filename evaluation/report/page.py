"""The report's page: its frame and style, and the few shapes its sections are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from evaluation.report.figures import STYLE as PICTURES
from evaluation.report.html import Html, element

# Nothing on the page may run or be fetched, whatever a file is called.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NOTHING = "\N{EN DASH}"
"""What a cell shows where there is no number."""
STYLE = """
:root { color-scheme: light dark; --ink: #1c2026; --soft: #5f6873; --paper: #ffffff; --faint: #eff1f4; --rule: #dadee4;
  --line: #1f6595; --good: #1a7446; --warn: #94560a; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9ca5b1; --paper: #14171b;
  --faint: #20252b; --rule: #343b44; --line: #7fbae2; --good: #70c998; --warn: #e2ad58; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 78rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.75rem; font-weight: 600; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; font-weight: 600; margin: 3rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .5rem; }
p, ul { max-width: 46rem; margin: .5rem 0; }
a { color: inherit; text-underline-offset: .2em; text-decoration-color: var(--rule); }
code, pre { font: .85em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .75rem; background: var(--faint); border-radius: 4px; }
summary { cursor: pointer; margin: .75rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 1rem 0; font-size: .875rem; }
.soft, .note { color: var(--soft); font-weight: 400; }
.note { font-size: .875rem; }
.lead { font-size: 1.1rem; margin: .75rem 0; }
.facts { display: flex; flex-wrap: wrap; gap: .75rem 2.5rem; margin: 1.25rem 0; }
.facts dt { font-size: .8rem; color: var(--soft); }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; max-width: 16rem; }
.facts small { display: block; color: var(--soft); font-size: .75rem; line-height: 1.35; }
.warnings { border-left: 3px solid var(--warn); padding: .25rem 0 .25rem 1rem; margin: 1.5rem 0; }
.warnings h3 { margin: 0; color: var(--warn); }
.warnings ul { margin: .25rem 0 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 500; font-size: .8rem; color: var(--soft); vertical-align: bottom; }
td.n, th.n { text-align: right; white-space: nowrap; }
tbody th { font-size: .9rem; color: var(--ink); padding-top: 1rem; }
.good { color: var(--good); font-weight: 600; }
.bar { display: inline-block; width: 6rem; height: .55rem; background: var(--faint); vertical-align: middle; }
.bar i { display: block; height: 100%; background: var(--line); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: 1rem 1.5rem; }
.charts figure { margin: 0; }
.charts figcaption { font-size: .875rem; }
.pairs { display: grid; gap: 1.25rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.strips { display: grid; gap: 1.25rem; }
.key { margin-top: .75rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 11px; }
svg .axis { stroke: var(--rule); fill: none; }
svg .raw { stroke: var(--line); opacity: .45; fill: none; }
svg .smooth { stroke: var(--line); stroke-width: 2; fill: none; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .8rem; color: var(--soft); }
svg.sample { display: inline-block; width: 1.2rem; height: .6rem; }
svg.standing { width: 10.5rem; height: 1.4rem; }
sup { font-size: .7em; line-height: 0; }
svg.standing .span { stroke: var(--rule); }
svg.standing .baseline { stroke: var(--soft); stroke-width: 2; }
svg.standing .teacher { stroke: var(--ink); stroke-width: 1.5; fill: var(--paper); }
svg.standing .student { fill: var(--line); }
@media (max-width: 40rem) { .hide { display: none; } table { font-size: .8rem; } tbody th { font-size: .85rem; }
  th, td { padding-right: .5rem; } td:last-child, th:last-child { padding-right: 0; } .bar { width: 3rem; } }
@media print { body { padding: 0; max-width: none; font-size: 10pt; } nav { display: none; }
  figure, tr, .strip { break-inside: avoid; } h2, h3 { break-after: avoid; } pre { white-space: pre-wrap; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def page(title: str, head: Html, sections: Sequence[tuple[str, Html]]) -> str:
    """A whole HTML page: a head, links to the sections by their titles, and the sections."""
    meta = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content="must"),
        element("title", title),
        element("style", Html(STYLE + PICTURES)),
    ]
    links = [element("a", name, href=f"#{anchor(name)}") for name, _ in sections]
    titled = [
        element("section", element("h2", name, id=anchor(name)), content, class_="section")
        for name, content in sections
    ]
    body = element("body", element("header", head, element("nav", *links)), element("main", *titled))
    return "<!DOCTYPE html>\n" + element("html", element("head", *meta), body, lang="en") + "\n"


def anchor(title: str) -> str:
    """The id of a section."""
    return title.lower().replace(" ", "-")


def paragraph(*content: str, class_: str | None = None) -> Html:
    """A paragraph."""
    return element("p", *content, class_=class_)


def listed(items: Iterable[str]) -> Html:
    """A list with dots."""
    return element("ul", *(element("li", item) for item in items))


def facts(items: Iterable[tuple[str, str]]) -> Html:
    """Short facts beside each other, each under its name."""
    return element(
        "dl", *(element("div", element("dt", name), element("dd", fact)) for name, fact in items), class_="facts"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[int] = ()) -> Html:
    """A table that scrolls sideways where it is too wide; the columns in `numbers` are set flush right."""
    kinds = ["n" if column in numbers else None for column in range(len(head))]
    top = element("tr", *(element("th", name, class_=kind) for name, kind in zip(head, kinds, strict=True)))
    body = [
        element("tr", *(element("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)))
        for row in rows
    ]
    return element("div", element("table", element("thead", top), element("tbody", *body)), class_="wide")


def folded(title: str, *content: str) -> Html:
    """Content that is shown when its title is clicked."""
    return element("details", element("summary", title), *content)


def file_name(name: str) -> Html:
    """A file's name, kept apart from the text around it whatever its direction of writing."""
    return element("bdi", element("code", name))


def duration(seconds: float) -> str:
    """Seconds as people say them: `< 0.1 s`, `0.4 s`, `25 s`, `8 min 30 s`, `3 h 05 min`."""
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 image`, `1,234 images`."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def percent(share: float) -> str:
    """A share in percent, with a decimal where it is small and not zero."""
    if 0 < share < 0.0005:
        return "< 0.1%"
    return f"{share:.1%}" if 0 < share < 0.0995 else f"{share:.0%}"
