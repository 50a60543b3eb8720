"""Lines with error bars as inline SVG: a metric over steps, or over the share of the images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evaluation.report.charts import path, ticks
from evaluation.report.html import Html, element

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 44, 448, 16, 236
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
        return LEFT + 12 + (RIGHT - LEFT - 24) * (math.log(x / xs[0]) / span if len(xs) > 1 else 0.5)

    def height(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    axes = "".join(f"M{LEFT} {height(tick):.1f}H{RIGHT}" for tick in rise)
    drawn = [element("path", class_="axis", d=axes)]
    drawn += [_text(f"{tick:g}", LEFT - 5, height(tick) + 4, "end") for tick in rise]
    drawn += [_text(f"{x:,g}", place(x), BOTTOM + 16, "middle") for x in xs]
    drawn.append(_text(axis, RIGHT, BOTTOM + 34, "end"))
    keys = []
    for number, name in enumerate([*series, *levels]):
        colour = COLOURS[number % len(COLOURS)]
        dashes = "4 3" if name in levels else None
        keys.append(_key(name, colour, dashes))
        if name in levels:
            line = f"M{LEFT} {height(levels[name]):.1f}H{RIGHT}"
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
    svg = element("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    return element("figure", element("figcaption", title), svg, element("div", *keys, class_="legend"))


def _key(name: str, colour: str, dashes: str | None) -> Html:
    line = element("path", d="M0 5H18", stroke=colour, stroke_width=2, stroke_dasharray=dashes)
    return element("span", element("svg", line, viewBox="0 0 18 10", class_="sample"), " ", name)


def _text(text: str, x: float, y: float, anchor: str) -> Html:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)
