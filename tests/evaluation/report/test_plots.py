"""Charts of lines with error bars."""

from __future__ import annotations

import re

import numpy as np
import pytest

from evaluation.report.charts import PLOT_BOTTOM, PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, Dot, lines_chart

TWO = {"simclr": [Dot(10, 50, 5), Dot(1000, 70, 0)]}


def circles(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [(float(x), float(y)) for x, y in found]


def ticks_of(svg: str) -> dict[float, float]:
    """Return the height of every number at the left."""
    found = re.findall(r'<text x="[\d.]+" y="([\d.]+)" text-anchor="end">([\d.]+)<', svg)
    return {float(number): float(y) - 4 for y, number in found}


def height(svg: str, value: float) -> float:
    """Return where a value has to be, by the numbers at the left."""
    marks = ticks_of(svg)
    values = sorted(marks)
    return float(np.interp(value, values, [marks[number] for number in values]))


def test_lines_chart_places_points_by_its_numbers() -> None:
    svg = lines_chart("it", TWO, {}, "steps")
    (left, one), (right, other) = circles(svg)
    assert (left, right) == (PLOT_LEFT + 12, PLOT_RIGHT - 12)
    assert one == pytest.approx(height(svg, 50), abs=0.2)
    assert other == pytest.approx(height(svg, 70), abs=0.2)
    assert PLOT_TOP <= other < one <= PLOT_BOTTOM, "more is higher up"
    assert ">10<" in svg
    assert ">1,000<" in svg
    assert ">steps<" in svg


def test_lines_chart_has_a_logarithmic_axis_below() -> None:
    svg = lines_chart("it", {"simclr": [Dot(10, 50, 0), Dot(100, 60, 0), Dot(1000, 70, 0)]}, {}, "steps")
    left, middle, right = (x for x, _ in circles(svg))
    assert middle == pytest.approx((left + right) / 2, abs=0.1)


def test_lines_chart_has_error_bars_of_a_deviation_up_and_down() -> None:
    svg = lines_chart("it", TWO, {}, "steps")
    x, low, high = map(float, re.findall(r'd="M([\d.]+) ([\d.]+)V([\d.]+)', svg)[0])
    assert x == PLOT_LEFT + 12
    assert (low, high) == pytest.approx((height(svg, 45), height(svg, 55)), abs=0.2)


def test_lines_chart_draws_a_level_as_a_dashed_line() -> None:
    svg = lines_chart("it", TWO, {"from scratch": 40}, "steps")
    y = float(re.findall(rf'd="M{PLOT_LEFT} ([\d.]+)H{PLOT_RIGHT}" stroke="#\w+" stroke-dasharray', svg)[0])
    assert y == pytest.approx(height(svg, 40), abs=0.2)
    assert "from scratch" in svg
    assert len(circles(svg)) == 2


def test_lines_chart_has_a_color_and_a_name_for_every_line() -> None:
    series = {f"row {number}": [Dot(1, number, 0), Dot(2, number, 0)] for number in range(5)}
    svg = lines_chart("it", series, {}, "steps")
    colors = re.findall(r'<circle [^>]* fill="(#\w+)"', svg)
    assert len(set(colors)) == 5
    assert all(f"> {name}<" in svg or name in svg for name in series)


@pytest.mark.parametrize("dots", [[Dot(5, 0, 0)], [Dot(5, 30, 0), Dot(6, 30, 0)], [Dot(1, 0, 0), Dot(2, 0, 0)]])
def test_lines_chart_draws_flat_lines_and_single_points(dots: list[Dot]) -> None:
    svg = lines_chart("a <title>", {"a & b": dots}, {}, "steps")
    assert all(PLOT_LEFT <= x <= PLOT_RIGHT and PLOT_TOP <= y <= PLOT_BOTTOM for x, y in circles(svg))
    assert "nan" not in svg
    assert "a &lt;title&gt;" in svg
    assert "a &amp; b" in svg
