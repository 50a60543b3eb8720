"""What a comparison supports: whether one row is better than another by more than chance, and a sentence of advice."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SURE = 0.95
FEWEST = 3
"""Seeds below which nothing is said to be better."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Rows by their mean, the best first, and the smallest difference that is more than chance: infinite where there
    are too few seeds to tell.
    """

    means: Mapping[str, float]
    least: float

    @property
    def best(self) -> str:
        return next(iter(self.means))

    def beats(self, other: str) -> bool:
        """Whether the best row is better than this one by more than chance."""
        return self.means[self.best] - self.means[other] > self.least


def standing(values: Mapping[str, Sequence[float]], n: int) -> Ranking:
    """How rows compare by a share in [0, 1] that was measured on `n` images, a value per seed, the seeds in one order.

    The least significant difference is the larger of two. That of Tukey's range test between all rows, at 95 %, on what
    is left of the values' variance without the rows' and the seeds' means: every seed has labels of its own, the same
    for all rows. And 1.96 standard errors of the difference of two shares measured on `n` images.
    """
    table = np.array([list(each) for each in values.values()], np.float64)
    rows, seeds = table.shape
    means = dict(sorted(zip(values, table.mean(axis=1).tolist(), strict=True), key=lambda item: -item[1]))
    if seeds < FEWEST or rows < 2:
        return Ranking(means, math.inf)
    error, freedom = _error(table[np.ptp(table, axis=1) > 0], seeds)
    tukey = quantile(rows, freedom) * error
    share = float(np.clip(table.mean(), 0, 1))
    images = statistics.NormalDist().inv_cdf((1 + SURE) / 2) * math.sqrt(2 * share * (1 - share) / n)
    return Ranking(means, max(tukey, images))


@functools.cache
def quantile(rows: int, freedom: int) -> float:
    """Tukey's, of the range of so many means, at 95 %; a tenth of a second's work."""
    from scipy.stats import studentized_range  # noqa: PLC0415 - most of a second, for who compares nothing as well

    return float(studentized_range.ppf(SURE, rows, freedom))


def _error(varying: NDArray[np.float64], seeds: int) -> tuple[float, int]:
    """The standard error of a row's mean, and its degrees of freedom, by the rows that vary: where nothing is drawn,
    all seeds come to the same, which says nothing about the others.
    """
    rest = varying - varying.mean(axis=1, keepdims=True) if len(varying) else varying
    freedom = len(varying) * (seeds - 1)
    if len(varying) > 1:
        rest = rest - rest.mean(axis=0, keepdims=True)
        freedom -= seeds - 1
    return (math.sqrt((rest**2).sum() / freedom / seeds), freedom) if freedom else (0.0, 1)


def advice(found: Ranking, baselines: Sequence[str], where: str) -> str:
    """What the numbers support, in a sentence; `baselines` are rows without a self-supervised stage."""
    best, mean = found.best, found.means[found.best]
    margin = f"differences below {100 * found.least:.1f} points are no more than chance"
    if math.isinf(found.least):
        return (
            f"{where}: {best!r} has the best mean ({100 * mean:.1f} %), but fewer than {FEWEST} seeds support no "
            "advice."
        )
    beaten = [name for name in found.means if name != best and found.beats(name)]
    near = [name for name in found.means if name != best and not found.beats(name)]
    plain = [name for name in (best, *near) if name in baselines]
    if plain:
        chosen = plain[0]
        rest = f"no stage is better than {chosen!r} ({100 * found.means[chosen]:.1f} %) by more than chance"
        return f"{where}: {rest}, so the numbers support no stage; {margin}."
    if near:
        return (
            f"{where}: take {best!r} ({100 * mean:.1f} %); it beats {_listed(beaten)}, and can't be told from "
            f"{_listed(near)}; {margin}."
        )
    return f"{where}: take {best!r} ({100 * mean:.1f} %), which beats all others; {margin}."


def _listed(names: Sequence[str]) -> str:
    told = [repr(name) for name in names]
    return f"{', '.join(told[:-1])} and {told[-1]}" if len(told) > 1 else "".join(told) or "nothing"
