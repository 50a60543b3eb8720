"""Test significance and advice: for known numbers, and the rate of false positives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from evaluation.comparison.significance import Ranking, advice_sentence, rank_rows

WHERE = "here"
MANY = 10**9
"""So many images that their sampling error is negligible."""
CLEAR = {"scratch": (0.50, 0.52, 0.51), "student": (0.60, 0.61, 0.62), "simclr": (0.80, 0.82, 0.81)}


def test_rank_rows_significant_difference_is_tukeys() -> None:
    """Three rows, three seeds: 4 degrees of freedom, q(0.95; 3, 4) = 5.040 of the tables.

    The rows' means are 0.5, 0.6 and 0.7, the seeds' 0.59, 0.6 and 0.61; what is left is +-0.01 here and there: nine
    values whose squares add up to 0.0006, a variance of 0.00015 and a standard error of 0.00707 for means of three.
    """
    rest = np.array([[1, -1, 0], [-1, 0, 1], [0, 1, -1]]) / 100
    table = np.array([[0.5], [0.6], [0.7]]) + np.array([[-0.01, 0, 0.01]]) + rest
    found = rank_rows({name: row.tolist() for name, row in zip("abc", table, strict=True)}, MANY)
    assert found.means == pytest.approx({"c": 0.7, "b": 0.6, "a": 0.5})
    assert list(found.means) == ["c", "b", "a"]
    assert found.significant_difference == pytest.approx(5.040 * math.sqrt(0.0006 / 4 / 3), rel=1e-3)


def test_rank_rows_ignores_what_rows_share_in_a_seed() -> None:
    """A seed draws its labels, the same for all rows."""
    seeds = np.array([0.0, 0.3, -0.2])
    found = rank_rows({"a": (0.5 + seeds).tolist(), "b": (0.6 + seeds).tolist()}, MANY)
    assert found.significant_difference < 1e-3
    assert found.beats("a")


def test_rank_rows_with_few_images_needs_a_larger_difference() -> None:
    """1.96 standard errors of the difference of two shares of 0.5 on 100 images, where seeds say nothing against it."""
    found = rank_rows({"a": (0.45, 0.45, 0.45), "b": (0.55, 0.55, 0.55)}, 100)
    assert found.significant_difference == pytest.approx(1.959964 * math.sqrt(2 * 0.25 / 100))
    assert not found.beats("a")
    assert rank_rows({"a": (0.45, 0.45, 0.45), "b": (0.55, 0.55, 0.55)}, 1000).beats("a")


@pytest.mark.parametrize("values", [{"a": (0.1, 0.1), "b": (0.9, 0.9)}, {"a": (0.1,), "b": (0.9,)}, {"a": (1.0,) * 5}])
def test_rank_rows_with_few_seeds_or_one_row_finds_no_difference(values: dict[str, tuple[float, ...]]) -> None:
    found = rank_rows(values, MANY)
    assert math.isinf(found.significant_difference)
    assert not any(found.beats(name) for name in values)


def test_advice_sentence_with_few_seeds_gives_none() -> None:
    said = advice_sentence(rank_rows({"a": (0.1, 0.1), "b": (0.9, 0.9)}, MANY), ["a"], WHERE)
    assert said == "here: 'b' has the best mean (90.0 %), but fewer than 3 seeds support no advice."


def test_advice_sentence_takes_a_clearly_better_row() -> None:
    said = advice_sentence(rank_rows(CLEAR, 10_000), ["scratch", "student"], WHERE)
    assert said.startswith("here: take 'simclr' (81.0 %), which beats all others; differences below")


def test_advice_sentence_for_equal_rows_supports_no_stage() -> None:
    values = {"scratch": (0.50, 0.52, 0.51), "simclr": (0.51, 0.51, 0.52), "mae": (0.52, 0.50, 0.52)}
    said = advice_sentence(rank_rows(values, 10_000), ["scratch"], WHERE)
    assert "no stage is better than 'scratch' (51.0 %) by more than chance" in said
    assert "support no stage" in said
    assert "take" not in said


def test_rank_rows_without_variance_finds_equal_rows_equal() -> None:
    said = advice_sentence(rank_rows(dict.fromkeys("ab", (0.5,) * 3), MANY), ["b"], WHERE)
    assert "support no stage" in said


def test_advice_sentence_does_not_take_a_stage_that_is_no_better() -> None:
    """It beats scratch, and not the student."""
    values = {"scratch": (0.20, 0.21, 0.22), "student": (0.79, 0.81, 0.80), "simclr": (0.80, 0.82, 0.81)}
    said = advice_sentence(rank_rows(values, 1000), ["scratch", "student"], WHERE)
    assert "no stage is better than 'student' (80.0 %)" in said


def test_advice_sentence_names_methods_that_are_not_separable() -> None:
    values = {**CLEAR, "mae": (0.81, 0.80, 0.81)}
    said = advice_sentence(rank_rows(values, 1000), ["scratch", "student"], WHERE)
    assert "take 'simclr' (81.0 %); it beats 'student' and 'scratch', and can't be told from 'mae'; " in said


def test_advice_sentence_takes_no_stage_if_a_baseline_is_best() -> None:
    said = advice_sentence(Ranking({"student": 0.9, "simclr": 0.5}, 0.1), ["student"], WHERE)
    assert "no stage is better than 'student'" in said


def test_advice_sentence_does_not_depend_on_row_order() -> None:
    values = {**CLEAR, "mae": (0.70, 0.72, 0.74), "byol": (0.80, 0.81, 0.80)}
    said = {
        advice_sentence(rank_rows(dict(order), 500), ["scratch", "student"], WHERE)
        for order in itertools.permutations(values.items())
    }
    assert len(said) == 1


def test_rank_rows_seldom_takes_chance_for_a_difference() -> None:
    """Rows without any difference, each seed with labels that are easier or harder for all of them: in one of twenty
    worlds at most is the best row said to beat another one.
    """
    rng, worlds = np.random.default_rng(0), 1000
    wrong = 0
    for _ in range(worlds):
        noise = 0.6 + 0.02 * rng.normal(size=(6, 3)) + 0.05 * rng.normal(size=(1, 3))
        found = rank_rows({str(name): row.tolist() for name, row in enumerate(noise)}, MANY)
        wrong += any(found.beats(name) for name in found.means)
    assert 0.03 < wrong / worlds < 0.065, "5 %, give or take what 1,000 worlds leave open"


def test_rank_rows_finds_a_true_difference() -> None:
    rng, worlds = np.random.default_rng(1), 100
    found = 0
    for _ in range(worlds):
        noise = 0.6 + 0.01 * rng.normal(size=(5, 3))
        noise[0] += 0.1
        said = advice_sentence(
            rank_rows({str(name): row.tolist() for name, row in enumerate(noise)}, MANY), ["1"], WHERE
        )
        found += "take '0'" in said
    assert found > 0.95 * worlds
