"""Fit calibrations on held-out images: temperatures of classifiers, isotonic curves of the scores of boxes and pixels.

A task says what one image tells of its scores (`Task.scored_examples`); `Calibrator` gathers that, fits, and measures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.stores.calibration import Calibration, Isotonic, Reliability, ReliabilityCurve, ScoreMap, Temperature
from pipeline.stores.labels import Value

MIN_EXAMPLES = 100
"""Images, pixels or boxes with a score, below which nothing is fitted."""
MIN_IMAGES = 10
"""Images below which nothing is fitted: the pixels of one image are right or wrong together."""
MAX_KNOTS = 50
KNOT_ERROR = 1e-3
"""Difference in probability from the whole curve at which no more knots are added to it."""
MAX_SIZE = 10_000_000
"""Numbers that are gathered of each half of the images; further images are left out."""
MERGE_FROM = 50_000
"""Numbers from which on they are merged on the way: pixels then take the memory of their 256 levels."""
TEMPERATURES = (1 / 20, 20.0)
"""The range that is searched."""


class Examples(Protocol):
    """Scores whose truth is known, and how such scores are calibrated."""

    def merge(self, others: Sequence[Self]) -> Self:
        """Return these and the others together."""

    def fit(self) -> ScoreMap:
        """Return the map from scores to probabilities that suits these best."""

    def outcomes(self, score_map: ScoreMap | None = None) -> ScoredExamples:
        """Return the predictions, with the scores that the map gives them."""

    @property
    def size(self) -> int:
        """The count of numbers in memory."""


@dataclasses.dataclass(frozen=True)
class ScoredExamples:
    """Predictions by their scores, of which each is right or wrong by itself: boxes, pixels. Calibrated by a curve."""

    scores: NDArray[Any]
    """(N,) float32 in [0, 1]."""
    right: NDArray[np.float64]
    """(N,), the share that is right."""
    weights: NDArray[np.float64]
    """(N,), how many predictions each is."""

    @property
    def size(self) -> int:
        return self.scores.size

    def merge(self, others: Sequence[Self]) -> Self:
        """Return these and the others together, equal scores as one."""
        every = [self, *others]
        joined = np.concatenate([each.scores for each in every])
        counts = np.concatenate([each.weights for each in every])
        hits = np.concatenate([each.weights * each.right for each in every])
        scores, inverse = np.unique(joined, return_inverse=True)
        weights = np.bincount(inverse, counts).astype(np.float64)
        return type(self)(scores, np.bincount(inverse, hits) / weights, weights)

    def fit(self) -> Isotonic:
        """Return the isotonic regression of what is right on the scores (Zadrozny and Elkan, KDD 2002), thinned."""
        from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415 - takes a second to load

        model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        model.fit(self.scores.astype(np.float64), self.right, sample_weight=self.weights)
        inner = model.X_thresholds_[(model.X_thresholds_ > 0) & (model.X_thresholds_ < 1)]
        scores = np.array([0.0, *inner, 1.0])
        probabilities = model.predict(scores)
        kept = thin(scores, probabilities)
        return Isotonic(tuple(scores[kept].tolist()), tuple(probabilities[kept].tolist()))

    def outcomes(self, score_map: ScoreMap | None = None) -> ScoredExamples:
        return self if score_map is None else dataclasses.replace(self, scores=score_map(self.scores))


@dataclasses.dataclass(frozen=True)
class ClassifiedExamples:
    """Distributions over K classes, and the true class of each. Calibrated by a temperature."""

    probs: NDArray[np.float32]
    """(N, K)."""
    classes: NDArray[np.int64]
    """(N,)."""

    @property
    def size(self) -> int:
        return self.probs.size

    def merge(self, others: Sequence[Self]) -> Self:
        every = [self, *others]
        probs, classes = np.concatenate([each.probs for each in every]), [each.classes for each in every]
        return type(self)(probs, np.concatenate(classes))

    def fit(self) -> Temperature:
        """Return the temperature of least negative log likelihood (Guo et al., ICML 2017, section 4.2)."""
        from scipy.optimize import minimize_scalar  # noqa: PLC0415 - takes a second to load
        from scipy.special import logsumexp  # noqa: PLC0415

        logs = np.log(np.maximum(self.probs, np.finfo(np.float32).tiny))
        true = logs[np.arange(len(logs)), self.classes]

        def loss(log_temperature: float) -> float:
            inverse = math.exp(-log_temperature)
            return float((logsumexp(logs * inverse, axis=1) - true * inverse).mean())

        found = minimize_scalar(loss, bounds=[math.log(end) for end in TEMPERATURES], method="bounded")
        return Temperature(math.exp(found.x))

    def outcomes(self, score_map: ScoreMap | None = None) -> ScoredExamples:
        probs = self.probs if score_map is None else score_map(self.probs)
        right = self.probs.argmax(axis=1) == self.classes
        return ScoredExamples(probs.max(axis=1), right.astype(np.float64), np.ones(len(right)))


def thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[int]:
    """Return the positions of up to MAX_KNOTS knots of a curve: its ends, and each next one where it is missed most."""
    kept = [0, len(x) - 1]
    while len(kept) < min(MAX_KNOTS, len(x)):
        missed = np.abs(np.interp(x, x[kept], y[kept]) - y)
        worst = int(missed.argmax())
        if missed[worst] <= KNOT_ERROR:
            break
        kept = sorted([*kept, worst])
    return kept


class _Half:
    """Examples of half of the images, merged whenever their size has doubled."""

    def __init__(self) -> None:
        self._parts: list[Any] = []
        self._size, self._merge_at = 0, MERGE_FROM

    @property
    def is_full(self) -> bool:
        return self._size >= MAX_SIZE

    def add(self, examples: Examples) -> None:
        self._parts.append(examples)
        self._size += examples.size
        if self._size > self._merge_at:
            self._size = self.merged().size
            self._merge_at = max(MERGE_FROM, 2 * self._size)

    def merged(self) -> Any:
        """Return all examples as one, None if there are none."""
        if len(self._parts) > 1:
            self._parts = [self._parts[0].merge(self._parts[1:])]
        return self._parts[0] if self._parts else None


class Calibrator:
    """Gathers scores on held-out images, fits a calibration, and measures it by cross-fitting.

    Every second image belongs to one half, the others to the other.

    Example:
        calibrator = Calibrator(task.scored_examples)
        calibrator.update(predicted, true)  # once per image
        calibration = calibrator.fit("things", "val")
    """

    def __init__(self, examples_of: Callable[[Value, Value], Examples | None]) -> None:
        self.examples_of = examples_of
        self.images = 0
        self._halves = (_Half(), _Half())

    def update(self, predicted: Value, true: Value) -> None:
        """Add an image: its predicted and its true label. Images that tell nothing of the scores are passed over."""
        half = self._halves[self.images % 2]
        examples = None if half.is_full else self.examples_of(predicted, true)
        if examples is not None:
            half.add(examples)
            self.images += 1

    def shortage(self) -> str | None:
        """Return why nothing can be fitted, or None if it can."""
        found = [half.merged().outcomes() for half in self._halves if half.merged()]
        total = sum(float(each.weights.sum()) for each in found)
        right = sum(float((each.weights * each.right).sum()) for each in found)
        if total < MIN_EXAMPLES or self.images < MIN_IMAGES:
            return (
                f"there are {total:,.0f} scores to compare with true labels, on {self.images} held-out images; "
                f"it takes {MIN_EXAMPLES}, on {MIN_IMAGES} images"
            )
        if right in (0, total):
            return f"all {total:,.0f} predictions on held-out images are {'right' if right else 'wrong'}"
        return None

    def fit(self, dataset: str, split: str) -> Calibration:
        """Return the calibration, fitted on all images of this split. There must be no `shortage`."""
        first, second = (half.merged() for half in self._halves)
        whole = first.merge([second])
        raw, calibrated = whole.outcomes(), first.outcomes(second.fit()).merge([second.outcomes(first.fit())])
        raw_curve, calibrated_curve = (
            ReliabilityCurve.of(each.scores, each.right, each.weights) for each in (raw, calibrated)
        )
        count = round(raw.weights.sum())
        return Calibration(whole.fit(), Reliability(dataset, split, self.images, count, raw_curve, calibrated_curve))
