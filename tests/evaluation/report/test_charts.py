"""Charts of losses and standings: round ticks that enclose the data, and curves that stay in their frame."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.report.charts import (
    BOTTOM,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    loss_chart,
    loss_image,
    running_mean,
    standing,
    ticks,
)


def lines(svg: str, kind: str) -> NDArray[np.float64]:
    """The points (N, 2) of the last path of a class in an SVG."""
    path = re.findall(rf'class="{kind}" d="M([^"]+)"', svg)[-1]
    return np.array([point.split() for point in path.split("L")], np.float64)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.5, 1]),
        (0.0, 60.0, [0, 20, 40, 60]),
        (0.213, 0.39, [0.2, 0.25, 0.3, 0.35, 0.4]),
        (-1.2, 3.0, [-2, 0, 2, 4]),
        (2.0, 2.0, [2, 2.5]),
        (0.0, 0.0, [0, 0.5]),
        (1e-12, 3e-12, [1e-12, 1.5e-12, 2e-12, 2.5e-12, 3e-12]),
    ],
)
def test_ticks_are_round_and_enclose_the_data(low: float, high: float, expected: list[float]) -> None:
    found = ticks(low, high, 4)
    assert found == pytest.approx(expected, abs=1e-20)
    assert found[0] <= low * (1 + 1e-9)
    assert high <= found[-1] * (1 + 1e-9)


def test_running_mean_is_the_mean_of_the_neighbors() -> None:
    assert running_mean(np.array([1.0, 4.0, 4.0, 1.0]), 3) == pytest.approx([2.5, 3.0, 3.0, 2.5])
    assert running_mean(np.array([5.0]), 3) == pytest.approx([5.0])


def test_loss_chart_of_a_falling_loss_falls_from_left_to_right() -> None:
    drawn = lines(loss_chart("depth", [(step, 10 / step) for step in range(1, 101)]), "smooth")
    assert (np.diff(drawn[:, 0]) > 0).all()
    assert (np.diff(drawn[:, 1]) >= 0).all(), "down in a picture is larger y"


def test_loss_chart_draws_every_step_of_a_short_log() -> None:
    drawn = lines(loss_chart("depth", [(1, 3.0), (2, 1.0), (3, 2.0)]), "raw")
    assert len(drawn) == 3
    assert drawn[1, 1] > drawn[2, 1] > drawn[0, 1]


def test_loss_chart_of_a_long_log_is_a_short_path_with_its_extremes() -> None:
    losses = np.ones(20_000)
    losses[::2] = 2.0
    drawn = lines(loss_chart("depth", list(enumerate(losses.tolist()))), "raw")
    assert len(drawn) == 2 * MAX_POINTS
    assert np.ptp(drawn[:, 1]) > (BOTTOM - TOP) / 4


def test_loss_chart_cuts_off_a_lone_spike() -> None:
    losses = [1 - step / 200 for step in range(200)]
    losses[100] = 1000.0
    svg = loss_chart("depth", list(enumerate(losses)))
    for kind in ("raw", "smooth"):
        drawn = lines(svg, kind)
        assert drawn[:, 0].min() >= LEFT - 0.1
        assert drawn[:, 0].max() <= RIGHT + 0.1
        assert drawn[:, 1].min() >= TOP - 0.1
        assert drawn[:, 1].max() <= BOTTOM + 0.1
    smooth = lines(svg, "smooth")
    assert np.ptp(smooth[:60, 1]) > (BOTTOM - TOP) / 5, "the fall before the spike can be seen"


@pytest.mark.parametrize("points", [[(1, 2.0)], [(1, 0.0), (2, 0.0)], [(5, -3.0), (9, -3.0)]])
def test_loss_chart_draws_short_flat_and_negative_losses(points: list[tuple[int, float]]) -> None:
    svg = loss_chart("depth", points)
    assert "nan" not in svg
    assert "inf" not in svg


def test_standing_has_the_better_to_the_right() -> None:
    values = {"student": 3.0, "teacher": 4.0, "baseline": 2.0}
    for better, first, last in (("higher", "baseline", "teacher"), ("lower", "teacher", "baseline")):
        svg = standing(values, better)
        at = {
            "baseline": float(re.findall(r'class="baseline" d="M([\d.]+)', svg)[0]),
            "teacher": float(re.findall(r'class="teacher" cx="([\d.]+)', svg)[0]),
            "student": float(re.findall(r'class="student" cx="([\d.]+)', svg)[0]),
        }
        assert at[first] < at["student"] < at[last]


def test_standing_leaves_out_a_missing_role() -> None:
    assert 'class="teacher"' not in standing({"student": 1.0, "baseline": 1.0}, "higher")


def test_loss_chart_says_how_often_there_is_a_value_and_draws_a_single_one_as_a_point() -> None:
    often = loss_chart("near", [(1, 2.0), (21, 1.0), (41, 0.5)], "feature rank")
    assert "every 20 steps" in often
    assert "feature rank by step" in often
    assert "each step" in loss_chart("near", [(1, 2.0), (2, 1.0)])
    some = loss_chart("depth", [(1, 2.0), (4, 1.0), (5, 1.0), (6, 0.5)])
    assert "where there is one" in some, "a head without a label in some steps"
    assert "every" not in some
    assert "where there is one" in loss_chart("depth", [(1, 2.0), (2, 1.0), (5, 1.0)])
    assert "<circle" in loss_chart("near", [(1, 2.0)])


def test_loss_image_is_a_chart_with_its_title_and_its_own_style() -> None:
    kind, _, data = loss_image("a < b", [(1, 2.0), (2, 1.0)]).partition(",")
    assert kind == "data:image/svg+xml;base64"
    drawn = ElementTree.fromstring(base64.b64decode(data))
    texts = ["".join(each.itertext()) for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "a < b 1 at the end"
    assert "--line" in "".join(drawn.itertext()), "colors are those of the report"
    assert float(drawn.attrib["height"]) > 180
