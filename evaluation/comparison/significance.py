"""Statistical significance of a comparison: is one row better than another by more than chance?"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
MIN_SEEDS = 3
"""With fewer seeds no row is called better."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Rows by their mean, the best first."""

    means: Mapping[str, float]
    significant_difference: float
    """The smallest difference that is more than chance; infinite with too few seeds."""

    @property
    def best(self) -> str:
        return next(iter(self.means))

    def beats(self, other: str) -> bool:
        """Return True if the best row is better than this one by more than chance."""
        return self.means[self.best] - self.means[other] > self.significant_difference


def rank_rows(values: Mapping[str, Sequence[float]], n: int) -> Ranking:
    """Rank rows by a metric in [0, 1] that was measured on `n` images.

    The least significant difference is the larger of two: that of Tukey's range test between all rows, at 95 %, on the
    variance that is left without the means of rows and seeds (a seed draws the same labels for all rows); and 1.96
    standard errors of the difference of two shares measured on `n` images.

    Args:
        values: By row, a value per seed, the seeds in the same order.
    """
    table = np.array([list(row) for row in values.values()], np.float64)
    rows, seeds = table.shape
    means = dict(sorted(zip(values, table.mean(axis=1).tolist(), strict=True), key=lambda item: -item[1]))
    if seeds < MIN_SEEDS or rows < 2:
        return Ranking(means, math.inf)
    error, degrees = _standard_error(table[np.ptp(table, axis=1) > 0], seeds)
    tukey = tukey_quantile(rows, degrees) * error
    share = float(np.clip(table.mean(), 0, 1))
    images = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(2 * share * (1 - share) / n)
    return Ranking(means, max(tukey, images))


@functools.cache
def tukey_quantile(rows: int, degrees: int) -> float:
    """Return the 95 % quantile of the studentized range of `rows` means; cached, as it takes a tenth of a second."""
    from scipy.stats import studentized_range  # noqa: PLC0415 - most of a second, also for runs without a comparison

    return float(studentized_range.ppf(CONFIDENCE, rows, degrees))


def _standard_error(varying: NDArray[np.float64], seeds: int) -> tuple[float, int]:
    """Return the standard error of a row's mean, and its degrees of freedom, by the rows that vary.

    A row without any random draw is the same for all seeds, which says nothing about the other rows.
    """
    residuals = varying - varying.mean(axis=1, keepdims=True) if len(varying) else varying
    degrees = len(varying) * (seeds - 1)
    if len(varying) > 1:
        residuals = residuals - residuals.mean(axis=0, keepdims=True)
        degrees -= seeds - 1
    return (math.sqrt((residuals**2).sum() / degrees / seeds), degrees) if degrees else (0.0, 1)


def advice_sentence(ranking: Ranking, baselines: Sequence[str], where: str) -> str:
    """Return a sentence on what the numbers support; `baselines` are the rows without a self-supervised stage."""
    best, mean = ranking.best, ranking.means[ranking.best]
    margin = f"differences below {100 * ranking.significant_difference:.1f} points are no more than chance"
    if math.isinf(ranking.significant_difference):
        return (
            f"{where}: {best!r} has the best mean ({100 * mean:.1f} %), but fewer than {MIN_SEEDS} seeds support no "
            "advice."
        )
    beaten = [name for name in ranking.means if name != best and ranking.beats(name)]
    near = [name for name in ranking.means if name != best and not ranking.beats(name)]
    plain = [name for name in (best, *near) if name in baselines]
    if plain:
        chosen = plain[0]
        rest = f"no stage is better than {chosen!r} ({100 * ranking.means[chosen]:.1f} %) by more than chance"
        return f"{where}: {rest}, so the numbers support no stage; {margin}."
    if near:
        return (
            f"{where}: take {best!r} ({100 * mean:.1f} %); it beats {_listed(beaten)}, and can't be told from "
            f"{_listed(near)}; {margin}."
        )
    return f"{where}: take {best!r} ({100 * mean:.1f} %), which beats all others; {margin}."


def _listed(names: Sequence[str]) -> str:
    quoted = [repr(name) for name in names]
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}" if len(quoted) > 1 else "".join(quoted) or "nothing"
