"""Charts as inline SVG, drawn from numbers alone: a loss over the steps, and where a student stands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.report.html import Html, element

WIDTH, HEIGHT = 320, 180
LEFT, RIGHT, TOP, BOTTOM = 40, 312, 18, 146
"""The chart's frame, and that of its curves inside it, in units of the SVG."""
MOST_POINTS = 240
"""Points of a curve; a longer log is drawn by the least and the largest value of every so many steps."""
SMOOTHING = 15
"""The smooth line is a running mean over one part in SMOOTHING of the curve."""
HIGHEST = 98
"""Percentile of the losses at which the chart ends: a lone spike is cut off, or it would flatten all the rest."""
SLACK = 1e-9
"""Of quotients that are whole numbers but for rounding."""

Curve = NDArray[np.float64]


def loss_chart(name: str, points: Sequence[tuple[int, float]], what: str = "loss") -> Html:
    """A loss, or `what` else was followed, over the steps: every step as a light line, a running mean as a dark one."""
    chart = _Chart(points, what)
    drawn = [*chart.axes(), *chart.legend(), *chart.curves()]
    svg = element("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{name}: {what} by step")
    last = f"{chart.smooth[-1]:.3g} at the end"
    return element("figure", element("figcaption", name, " ", element("span", last, class_="soft")), svg)


class _Chart:
    """One curve with its scales."""

    def __init__(self, points: Sequence[tuple[int, float]], what: str) -> None:
        self.what = what
        gaps = {after - before for (before, _), (after, _) in itertools.pairwise(points)} or {1}
        self.gap = gaps.pop() if len(gaps) == 1 else None
        pieces = np.array_split(np.array(points, np.float64), min(len(points), MOST_POINTS))
        self.steps = np.array([piece[:, 0].mean() for piece in pieces])
        self.low = np.array([piece[:, 1].min() for piece in pieces])
        self.high = np.array([piece[:, 1].max() for piece in pieces])
        mean = np.array([piece[:, 1].mean() for piece in pieces])
        window = max(1, len(mean) // SMOOTHING) | 1
        self.smooth = running_mean(mean, window)
        self.window = round(window * len(points) / len(pieces))
        self.y_ticks = ticks(float(self.low.min()), float(np.percentile(self.high, HIGHEST)), 4)
        self.x_ticks = ticks(0, points[-1][0], 5)
        self.x_end = max(self.x_ticks[-1], points[-1][0])

    def x(self, steps: Curve) -> Curve:
        return LEFT + steps / self.x_end * (RIGHT - LEFT)

    def y(self, values: Curve) -> Curve:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return BOTTOM - (np.clip(values, low, high) - low) / (high - low) * (BOTTOM - TOP)

    def axes(self) -> list[Html]:
        """Ticks with their numbers, and what the axes are."""
        rise, run = self.y(np.array(self.y_ticks)), self.x(np.array(self.x_ticks))
        lines = "".join(f"M{LEFT} {y:.1f}H{RIGHT}" for y in rise) + "".join(f"M{x:.1f} {BOTTOM}v4" for x in run)
        left = [_text(f"{tick:g}", LEFT - 5, y + 4, "end") for tick, y in zip(self.y_ticks, rise, strict=True)]
        below = [_text(f"{tick:g}", x, BOTTOM + 16, "middle") for tick, x in zip(self.x_ticks, run, strict=True)]
        names = [_text(self.what, 0, 9, "start"), _text("step", RIGHT, HEIGHT - 4, "end")]
        return [element("path", class_="axis", d=lines), *left, *below, *names]

    def legend(self) -> list[Html]:
        """What the lines are, above the curves."""
        often = "where there is one" if self.gap is None else f"every {self.gap} steps"
        each, of = ("each step", "steps") if self.gap == 1 else (often, "values")
        if self.window == 1:
            return [element("path", class_="smooth", d=f"M{RIGHT - 92} 5h14"), _text(each, RIGHT, 9, "end")]
        raw = [element("path", class_="raw", d=f"M{RIGHT - 222} 5h14"), _text(each, RIGHT - 204, 9, "start")]
        mean = f"mean of {self.window} {of}"
        return [*raw, element("path", class_="smooth", d=f"M{RIGHT - 110} 5h14"), _text(mean, RIGHT - 92, 9, "start")]

    def curves(self) -> list[Html]:
        """The light line and the dark one."""
        x = self.x(self.steps)
        if len(x) == 1:
            return [element("circle", class_="smooth", cx=f"{x[0]:.1f}", cy=f"{self.y(self.smooth)[0]:.1f}", r="1.5")]
        if (self.low == self.high).all():
            raw = path(x, self.y(self.low))
        else:
            raw = path(np.repeat(x, 2), np.stack([self.y(self.low), self.y(self.high)], axis=1).ravel())
        return [element("path", class_="raw", d=raw), element("path", class_="smooth", d=path(x, self.y(self.smooth)))]


def running_mean(values: Curve, window: int) -> Curve:
    """The mean of the `window` (odd) values around each one; near the ends, of those there are."""
    ones = np.ones(min(window, len(values)))
    mean: Curve = np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")
    return mean


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About `wanted` round numbers (1, 2 or 5 times a power of ten apart) that enclose low to high; at least two."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / wanted))
    gap = next(step * power for step in (1, 2, 5, 10) if span / (step * power) < wanted + SLACK)
    first, last = math.floor(low / gap + SLACK), math.ceil(high / gap - SLACK)
    return [float(f"{number * gap:.10g}") for number in range(first, max(last, first + 1) + 1)]


def path(x: Curve, y: Curve) -> str:
    """The SVG path through points."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def standing(values: Mapping[str, float], better: str) -> Html:
    """Baseline (a tick), teacher (a ring) and student (a dot) on one line, the better to the right."""
    signed = {role: value if better == "higher" else -value for role, value in values.items()}
    low, high = min(signed.values()), max(signed.values())
    at = {role: 6 + 108 * (value - low) / (high - low) if high > low else 60.0 for role, value in signed.items()}
    marks = [element("path", class_="span", d="M6 8H114")]
    if "baseline" in at:
        marks.append(element("path", class_="baseline", d=f"M{at['baseline']:.1f} 2v12"))
    if "teacher" in at:
        marks.append(element("circle", class_="teacher", cx=f"{at['teacher']:.1f}", cy=8, r=5))
    if "student" in at:
        marks.append(element("circle", class_="student", cx=f"{at['student']:.1f}", cy=8, r=3.5))
    words = ", ".join(f"{role} {value:.3f}" for role, value in values.items())
    return element("svg", element("title", words), *marks, class_="standing", viewBox="0 0 120 16", role="img")


def bar(share: float, words: str = "") -> Html:
    """A bar that is filled by a share in [0, 1]; `words` show on hover."""
    return element("span", element("i", style=f"width:{min(max(share, 0), 1):.1%}"), class_="bar", title=words or None)


def _text(text: str, x: float, y: float, anchor: str) -> Html:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


PLOT_WIDTH, PLOT_HEIGHT = 460, 280
PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM = 44, 448, 16, 236
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a6761d", "#56b4e9", "#7570b3", "#666666")
"""Told apart by most eyes (Okabe and Ito's, and three more); they come round again."""


class Dot(NamedTuple):
    """A mean and its deviation at a place of the axis below, which is logarithmic."""

    x: float
    mean: float
    deviation: float


def lines_chart(title: str, series: Mapping[str, Sequence[Dot]], levels: Mapping[str, float], axis: str) -> Html:
    """`series` as lines with error bars, `levels`, which don't depend on the axis, as dashed ones."""
    xs = sorted({dot.x for dots in series.values() for dot in dots})
    ends = [dot.mean + sign * dot.deviation for dots in series.values() for dot in dots for sign in (-1, 1)]
    rise = ticks(min([*ends, *levels.values()]), max([*ends, *levels.values()]), 5)
    low, high = rise[0], rise[-1]

    def place(x: float) -> float:
        span = math.log(xs[-1] / xs[0]) or 1.0
        return PLOT_LEFT + 12 + (PLOT_RIGHT - PLOT_LEFT - 24) * (math.log(x / xs[0]) / span if len(xs) > 1 else 0.5)

    def height(value: float) -> float:
        return PLOT_BOTTOM - (value - low) / (high - low) * (PLOT_BOTTOM - PLOT_TOP)

    axes = "".join(f"M{PLOT_LEFT} {height(tick):.1f}H{PLOT_RIGHT}" for tick in rise)
    drawn = [element("path", class_="axis", d=axes)]
    drawn += [_text(f"{tick:g}", PLOT_LEFT - 5, height(tick) + 4, "end") for tick in rise]
    drawn += [_text(f"{x:,g}", place(x), PLOT_BOTTOM + 16, "middle") for x in xs]
    drawn.append(_text(axis, PLOT_RIGHT, PLOT_BOTTOM + 34, "end"))
    keys = []
    for number, name in enumerate([*series, *levels]):
        colour = COLOURS[number % len(COLOURS)]
        dashes = "4 3" if name in levels else None
        keys.append(_key(name, colour, dashes))
        if name in levels:
            line = f"M{PLOT_LEFT} {height(levels[name]):.1f}H{PLOT_RIGHT}"
            drawn.append(element("path", d=line, stroke=colour, stroke_dasharray=dashes, fill="none"))
            continue
        dots = series[name]
        bars = "".join(
            f"M{place(dot.x):.1f} {height(dot.mean - dot.deviation):.1f}V{height(dot.mean + dot.deviation):.1f}"
            for dot in dots
        )
        line = path(np.array([place(dot.x) for dot in dots]), np.array([height(dot.mean) for dot in dots]))
        drawn.append(element("path", d=bars + line, stroke=colour, stroke_width="1.5", fill="none"))
        drawn += [
            element("circle", cx=f"{place(d.x):.1f}", cy=f"{height(d.mean):.1f}", r=2.5, fill=colour) for d in dots
        ]
    svg = element("svg", *drawn, viewBox=f"0 0 {PLOT_WIDTH} {PLOT_HEIGHT}", role="img", aria_label=title)
    return element("figure", element("figcaption", title), svg, element("div", *keys, class_="legend"))


def _key(name: str, colour: str, dashes: str | None) -> Html:
    line = element("path", d="M0 5H18", stroke=colour, stroke_width=2, stroke_dasharray=dashes)
    return element("span", element("svg", line, viewBox="0 0 18 10", class_="sample"), " ", name)
