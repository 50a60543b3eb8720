"""Calibrations: maps from a teacher's scores to probabilities of being right, and how reliable both are.

They are fitted on held-out images by `tasks.calibration`, stored with the teacher, and copied into the metadata of its
label files. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

BINS = 10
"""Bins of equal width in [0, 1] of a reliability curve."""


class ScoreMap(Protocol):
    """A map from scores to probabilities that keeps their order: of all scores, or of the classes of a distribution."""

    def __call__(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return the probabilities of scores in [0, 1], in their shape and dtype."""

    def to_json(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Temperature scaling of distributions (..., K): softmax(log p / T) (Guo et al., ICML 2017, equation 9).

    The most probable class stays the same. A distribution of zeros, which means unknown, stays as it is.
    """

    temperature: float

    def __call__(self, scores: NDArray[Any]) -> NDArray[Any]:
        largest = scores.max(axis=-1, keepdims=True)
        ratios = np.divide(scores, largest, out=np.zeros(scores.shape), where=largest > 0)
        scaled = ratios ** (1 / self.temperature)
        return (scaled / np.maximum(scaled.sum(axis=-1, keepdims=True), 1)).astype(scores.dtype)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "temperature", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Isotonic:
    """A non-decreasing curve through knots, linear in between (Zadrozny and Elkan, KDD 2002)."""

    scores: tuple[float, ...]
    """Ascending, from 0 to 1."""
    probabilities: tuple[float, ...]

    def __call__(self, scores: NDArray[Any]) -> NDArray[Any]:
        return np.interp(scores, self.scores, self.probabilities).astype(scores.dtype)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "isotonic", "scores": list(self.scores), "probabilities": list(self.probabilities)}


class ReliabilityBin(NamedTuple):
    """The predictions whose confidence is in one bin: their mean confidence, the share that is right, and how many."""

    confidence: float
    right: float
    size: float


@dataclasses.dataclass(frozen=True)
class ReliabilityCurve:
    """The bins that hold predictions, and the expected calibration error in [0, 1] (Guo et al., equation 3)."""

    bins: tuple[ReliabilityBin, ...]
    ece: float

    @classmethod
    def of(cls, confidence: NDArray[Any], right: NDArray[Any], weights: NDArray[Any]) -> ReliabilityCurve:
        """Return the curve of predictions (N,): confidences in [0, 1], shares that are right, and how many each is."""
        numbers = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        counts, confidences, rights = (
            np.bincount(numbers, weights * values, BINS) for values in (np.ones_like(weights), confidence, right)
        )
        bins = tuple(
            ReliabilityBin(float(confidences[n] / counts[n]), float(rights[n] / counts[n]), float(counts[n]))
            for n in np.flatnonzero(counts)
        )
        return cls(bins, float(np.abs(confidences - rights).sum() / max(counts.sum(), 1)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ReliabilityCurve:
        return cls(tuple(ReliabilityBin(*each) for each in data["bins"]), data["ece"])


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Measurement on held-out images: how well scores, raw and calibrated, state the share that is right.

    Cross-fitted: each half of the images is calibrated by what was fitted on the other half.
    """

    dataset: str
    split: str
    images: int
    examples: int
    """Images, pixels or boxes with a score."""
    raw: ReliabilityCurve
    calibrated: ReliabilityCurve

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reliability:
        curves = {name: ReliabilityCurve.from_json(data[name]) for name in ("raw", "calibrated")}
        return cls(**{**data, **curves})


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A teacher's calibration: the map, and the measurement of it.

    Example:
        calibration = Calibration(Isotonic((0.0, 0.5, 1.0), (0.0, 0.2, 0.9)))
        calibration(np.array([0.75]))  # array([0.55])
    """

    score_map: ScoreMap
    reliability: Reliability | None = None

    def __call__(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return the probabilities of scores, as `ScoreMap` does."""
        return self.score_map(scores)

    def to_json(self) -> dict[str, Any]:
        reliability = self.reliability and dataclasses.asdict(self.reliability)
        return {"map": self.score_map.to_json(), "reliability": reliability}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Calibration | None:
        """Return the calibration that `to_json` stated; None for None, which states that there is none."""
        if data is None:
            return None
        return cls(_map_from_json(data["map"]), data["reliability"] and Reliability.from_json(data["reliability"]))


def _map_from_json(data: Mapping[str, Any]) -> ScoreMap:
    if data["kind"] == "temperature":
        return Temperature(data["temperature"])
    return Isotonic(tuple(data["scores"]), tuple(data["probabilities"]))
