"""Draw charts as inline SVG from numbers alone: losses over the steps, and scores of student, teacher and baseline."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from evaluation.report.html import render, storable
from pipeline.stores.calibration import Reliability, ReliabilityCurve

WIDTH, HEIGHT = 320, 180
LEFT, RIGHT, TOP, BOTTOM = 40, 312, 18, 146
"""A loss chart's size, and the frame of its curves inside it, in units of the SVG."""
IMAGE_MARGIN, IMAGE_TITLE = 8, 22
"""Added around a loss chart, and above it for the title, where it is an image of its own."""
MAX_POINTS = 240
"""Points of a curve; a longer log is drawn by the least and the largest value of every so many steps."""
SMOOTHING = 15
"""The smooth line is a running mean over one part in SMOOTHING of the curve."""
TOP_PERCENTILE = 98
"""Percentile of the losses at which the chart ends: a lone spike is cut off, or it would flatten all the rest."""
EPSILON = 1e-9
"""Tolerance for quotients that are whole numbers but for rounding."""
RELIABILITY_HEIGHT = 240
RELIABILITY_FRAME = ((LEFT, 240), (200, TOP))
"""Left and right, bottom and top of a reliability chart's frame."""
PLOT_WIDTH, PLOT_HEIGHT = 460, 280
PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM = 44, 448, 16, 236
"""The same of a lines chart."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a6761d", "#56b4e9", "#7570b3", "#666666")
"""Told apart by most eyes (Okabe and Ito's, and three more); they repeat."""

Curve = NDArray[np.float64]


def element(tag: str, /, *content: str, **attributes: str | float | None) -> Markup:
    """Return `<tag attributes>content</tag>`, with all text escaped that is not `Markup`.

    An underscore in an attribute's name stands for a hyphen, and one at the end is dropped (`class_`); None leaves the
    attribute out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{written}>{''.join(map(escape, content))}</{tag}>")


def loss_chart(name: str, points: Sequence[tuple[int, float]], quantity: str = "loss") -> Markup:
    """Return a figure of `quantity` over the steps: every value as a light line, a running mean as a dark one."""
    chart = _LossChart(points, quantity)
    label = f"{name}: {quantity} by step"
    svg = element("svg", *chart.drawn(), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)
    return element("figure", element("figcaption", name, " ", element("span", chart.last, class_="soft")), svg)


def loss_image(name: str, points: Sequence[tuple[int, float]], quantity: str = "loss") -> str:
    """Return what `loss_chart` draws, with its title, as an SVG inside a URL: for pages that show images alone."""
    chart = _LossChart(points, quantity)
    top = IMAGE_MARGIN + IMAGE_TITLE
    size = {"width": WIDTH + 2 * IMAGE_MARGIN, "height": HEIGHT + top + IMAGE_MARGIN}
    svg = render("chart.svg", title=name, note=chart.last, drawn=chart.drawn(), margin=IMAGE_MARGIN, top=top, **size)
    return "data:image/svg+xml;base64," + base64.b64encode(storable(svg).encode()).decode("ascii")


class _LossChart:
    """One curve with its scales."""

    def __init__(self, points: Sequence[tuple[int, float]], quantity: str) -> None:
        self.quantity = quantity
        gaps = {after - before for (before, _), (after, _) in itertools.pairwise(points)} or {1}
        self.gap = gaps.pop() if len(gaps) == 1 else None
        pieces = np.array_split(np.array(points, np.float64), min(len(points), MAX_POINTS))
        self.steps = np.array([piece[:, 0].mean() for piece in pieces])
        self.low = np.array([piece[:, 1].min() for piece in pieces])
        self.high = np.array([piece[:, 1].max() for piece in pieces])
        mean = np.array([piece[:, 1].mean() for piece in pieces])
        window = max(1, len(mean) // SMOOTHING) | 1
        self.smooth = running_mean(mean, window)
        self.window = round(window * len(points) / len(pieces))
        self.y_ticks = ticks(float(self.low.min()), float(np.percentile(self.high, TOP_PERCENTILE)), 4)
        self.x_ticks = ticks(0, points[-1][0], 5)
        self.x_end = max(self.x_ticks[-1], points[-1][0])

    def x(self, steps: Curve) -> Curve:
        return LEFT + steps / self.x_end * (RIGHT - LEFT)

    def y(self, values: Curve) -> Curve:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return BOTTOM - (np.clip(values, low, high) - low) / (high - low) * (BOTTOM - TOP)

    @property
    def last(self) -> str:
        return f"{self.smooth[-1]:.3g} at the end"

    def drawn(self) -> list[Markup]:
        """Return all that is drawn."""
        return [*self.axes(), *self.legend(), *self.curves()]

    def axes(self) -> list[Markup]:
        """Return the ticks with their numbers, and the names of the axes."""
        ys, xs = self.y(np.array(self.y_ticks)), self.x(np.array(self.x_ticks))
        lines = "".join(f"M{LEFT} {y:.1f}H{RIGHT}" for y in ys) + "".join(f"M{x:.1f} {BOTTOM}v4" for x in xs)
        left = [_text(f"{tick:g}", LEFT - 5, y + 4, "end") for tick, y in zip(self.y_ticks, ys, strict=True)]
        below = [_text(f"{tick:g}", x, BOTTOM + 16, "middle") for tick, x in zip(self.x_ticks, xs, strict=True)]
        names = [_text(self.quantity, 0, 9, "start"), _text("step", RIGHT, HEIGHT - 4, "end")]
        return [element("path", class_="axis", d=lines), *left, *below, *names]

    def legend(self) -> list[Markup]:
        """Return the names of the lines, above the curves."""
        spacing = "where there is one" if self.gap is None else f"every {self.gap} steps"
        raw_name, unit = ("each step", "steps") if self.gap == 1 else (spacing, "values")
        if self.window == 1:
            return [element("path", class_="smooth", d=f"M{RIGHT - 92} 5h14"), _text(raw_name, RIGHT, 9, "end")]
        raw = [element("path", class_="raw", d=f"M{RIGHT - 222} 5h14"), _text(raw_name, RIGHT - 204, 9, "start")]
        mean = f"mean of {self.window} {unit}"
        return [*raw, element("path", class_="smooth", d=f"M{RIGHT - 110} 5h14"), _text(mean, RIGHT - 92, 9, "start")]

    def curves(self) -> list[Markup]:
        """Return the light line and the dark one; a single value is a point."""
        x = self.x(self.steps)
        if len(x) == 1:
            return [element("circle", class_="smooth", cx=f"{x[0]:.1f}", cy=f"{self.y(self.smooth)[0]:.1f}", r="1.5")]
        if (self.low == self.high).all():
            raw = path(x, self.y(self.low))
        else:
            raw = path(np.repeat(x, 2), np.stack([self.y(self.low), self.y(self.high)], axis=1).ravel())
        return [element("path", class_="raw", d=raw), element("path", class_="smooth", d=path(x, self.y(self.smooth)))]


def running_mean(values: Curve, window: int) -> Curve:
    """Return the mean of the `window` (odd) values around each value; near the ends, of fewer."""
    ones = np.ones(min(window, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Return about `wanted` round numbers that enclose low to high, at least two.

    Their distance is 1, 2 or 5 times a power of ten.
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / wanted))
    gap = next(step * power for step in (1, 2, 5, 10) if span / (step * power) < wanted + EPSILON)
    first, last = math.floor(low / gap + EPSILON), math.ceil(high / gap - EPSILON)
    return [float(f"{number * gap:.10g}") for number in range(first, max(last, first + 1) + 1)]


def path(x: Curve, y: Curve) -> str:
    """Return the SVG path through points."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def standing(values: Mapping[str, float], better: str) -> Markup:
    """Return baseline (a tick), teacher (a ring) and student (a dot) on one line, the better to the right."""
    signed = {role: value if better == "higher" else -value for role, value in values.items()}
    low, high = min(signed.values()), max(signed.values())
    x = {role: 6 + 108 * (value - low) / (high - low) if high > low else 60.0 for role, value in signed.items()}
    marks = [element("path", class_="span", d="M6 8H114")]
    if "baseline" in x:
        marks.append(element("path", class_="baseline", d=f"M{x['baseline']:.1f} 2v12"))
    if "teacher" in x:
        marks.append(element("circle", class_="teacher", cx=f"{x['teacher']:.1f}", cy=8, r=5))
    if "student" in x:
        marks.append(element("circle", class_="student", cx=f"{x['student']:.1f}", cy=8, r=3.5))
    title = ", ".join(f"{role} {value:.3f}" for role, value in values.items())
    return element("svg", element("title", title), *marks, class_="standing", viewBox="0 0 120 16", role="img")


def reliability_chart(title: str, reliability: Reliability) -> Markup:
    """Return a figure of the share that is right by score, raw (light) and calibrated (dark).

    On the dashed line the two are equal. A dot is as large as its part of all predictions.
    """
    (left, right), (bottom, top) = RELIABILITY_FRAME
    numbers = [_text(f"{share:g}", left - 5, _between(bottom, top, share) + 4, "end") for share in (0, 0.5, 1)]
    numbers += [_text(f"{share:g}", _between(left, right, share), bottom + 16, "middle") for share in (0, 0.5, 1)]
    names = [_text("share that is right", 0, 9, "start"), _text("score or probability", right, bottom + 32, "end")]
    frame = element("path", class_="axis", d=f"M{left} {top}V{bottom}H{right}")
    ideal = element("path", class_="axis", d=f"M{left} {bottom}L{right} {top}", stroke_dasharray="4 3")
    lines = [*_reliability_line("raw", reliability.raw), *_reliability_line("smooth", reliability.calibrated)]
    label = f"{title}: reliability"
    view = f"0 0 {WIDTH} {RELIABILITY_HEIGHT}"
    svg = element("svg", frame, *numbers, *names, ideal, *lines, viewBox=view, role="img", aria_label=label)
    error = f"off by {reliability.raw.ece:.3f} raw, {reliability.calibrated.ece:.3f} calibrated"
    return element("figure", element("figcaption", title, " ", element("span", error, class_="soft")), svg)


def _reliability_line(style: str, curve: ReliabilityCurve) -> list[Markup]:
    """Return the line through the bins, and a dot for each."""
    (left, right), (bottom, top) = RELIABILITY_FRAME
    x = np.array([_between(left, right, each.confidence) for each in curve.bins])
    y = np.array([_between(bottom, top, each.right) for each in curve.bins])
    sizes = np.array([each.size for each in curve.bins])
    radii = 1.5 + 3.5 * np.sqrt(sizes / sizes.max())
    dots = [
        element("circle", class_=f"dot {style}", cx=f"{a:.1f}", cy=f"{b:.1f}", r=f"{radius:.1f}")
        for a, b, radius in zip(x, y, radii, strict=True)
    ]
    return [element("path", class_=style, d=path(x, y)), *dots]


def _between(low: float, high: float, share: float) -> float:
    return low + share * (high - low)


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


class Dot(NamedTuple):
    """A mean and its standard deviation at `x` on the logarithmic axis below."""

    x: float
    mean: float
    deviation: float


def lines_chart(title: str, series: Mapping[str, Sequence[Dot]], levels: Mapping[str, float], axis: str) -> Markup:
    """Return a figure of `series` as lines with error bars, and of `levels`, which have no x, as dashed lines."""
    chart = _LinesChart(series, levels)
    drawn, keys = chart.axes(axis), []
    for number, name in enumerate([*series, *levels]):
        color = COLORS[number % len(COLORS)]
        dashes = "4 3" if name in levels else None
        line = element("path", d="M0 5H18", stroke=color, stroke_width=2, stroke_dasharray=dashes)
        sample = element("svg", line, viewBox="0 0 18 10", class_="sample")
        keys.append(element("span", sample, " ", name))
        if name in levels:
            level = f"M{PLOT_LEFT} {chart.y(levels[name]):.1f}H{PLOT_RIGHT}"
            drawn.append(element("path", d=level, stroke=color, stroke_dasharray=dashes, fill="none"))
        else:
            drawn += chart.line(series[name], color)
    svg = element("svg", *drawn, viewBox=f"0 0 {PLOT_WIDTH} {PLOT_HEIGHT}", role="img", aria_label=title)
    return element("figure", element("figcaption", title), svg, element("div", *keys, class_="legend"))


class _LinesChart:
    """The scales of several lines."""

    def __init__(self, series: Mapping[str, Sequence[Dot]], levels: Mapping[str, float]) -> None:
        dots = [dot for line in series.values() for dot in line]
        ends = [dot.mean + sign * dot.deviation for dot in dots for sign in (-1, 1)]
        self.x_ticks = sorted({dot.x for dot in dots})
        self.y_ticks = ticks(min([*ends, *levels.values()]), max([*ends, *levels.values()]), 5)

    def x(self, x: float) -> float:
        first, last = self.x_ticks[0], self.x_ticks[-1]
        share = math.log(x / first) / math.log(last / first) if last > first else 0.5
        return PLOT_LEFT + 12 + (PLOT_RIGHT - PLOT_LEFT - 24) * share

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return PLOT_BOTTOM - (value - low) / (high - low) * (PLOT_BOTTOM - PLOT_TOP)

    def axes(self, name: str) -> list[Markup]:
        """Return the ticks with their numbers, and the name of the axis below."""
        lines = "".join(f"M{PLOT_LEFT} {self.y(tick):.1f}H{PLOT_RIGHT}" for tick in self.y_ticks)
        left = [_text(f"{tick:g}", PLOT_LEFT - 5, self.y(tick) + 4, "end") for tick in self.y_ticks]
        below = [_text(f"{x:,g}", self.x(x), PLOT_BOTTOM + 16, "middle") for x in self.x_ticks]
        return [
            element("path", class_="axis", d=lines),
            *left,
            *below,
            _text(name, PLOT_RIGHT, PLOT_BOTTOM + 34, "end"),
        ]

    def line(self, dots: Sequence[Dot], color: str) -> list[Markup]:
        """Return the line through dots with their error bars."""
        places = [(self.x(dot.x), self.y(dot.mean)) for dot in dots]
        bars = "".join(
            f"M{self.x(dot.x):.1f} {self.y(dot.mean - dot.deviation):.1f}V{self.y(dot.mean + dot.deviation):.1f}"
            for dot in dots
        )
        line = bars + path(*np.array(places).T)
        circles = [element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.5, fill=color) for x, y in places]
        return [element("path", d=line, stroke=color, stroke_width="1.5", fill="none"), *circles]
