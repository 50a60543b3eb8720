"""Records of what backbones score, as kept in `measured.json`. No torch."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pipeline.recipe.evaluation import Amount

MEASUREMENTS_FILE = "measured.json"
CLEAN, ALL_CORRUPTIONS = "none", "all"
"""Values of `Measurement.corruption` for unchanged images and for the mean over all corruptions."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One value of a metric, and how it was measured."""

    start: str
    """Name of the backbone's origin: `scratch`, `student`, `stage.<name>` ..."""
    backbone: str
    protocol: str
    about: str
    """The protocol in words."""
    dataset: str
    task: str
    split: str
    n: int
    """Number of images measured on."""
    asked: Amount
    """The amount of labels as the recipe has it."""
    labels: int
    """Number of labels used, those for validation included."""
    seed: int
    metric: str
    better: str
    """"higher" or "lower"."""
    value: float
    corruption: str = CLEAN
    steps: int | None = None
    images: int | None = None
    seconds: float | None = None
    """Optimizer steps, images that went through them, and seconds of training; None if no gradient steps were taken."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trained_on_labels: bool = False
    """The backbone was trained on the set's labels for this task: a whole run tells, in `learned_labels.py`."""

    def to_json(self) -> dict[str, Any]:
        """Return the record's fields, `trained_on_labels` only if it is true."""
        fields = dataclasses.asdict(self)
        return fields if self.trained_on_labels else {k: v for k, v in fields.items() if k != "trained_on_labels"}


def measurements(
    scores: Iterable[tuple[str, Mapping[str, float]]], better: Mapping[str, str], about: tuple[str, str], **shared: Any
) -> Iterator[Measurement]:
    """Yield a record for each corruption and metric, and for the mean over all corruptions.

    Args:
        scores: (corruption, metrics), as often as it has severities, of which the mean is taken.
        better: the better direction by metric.
        about: the protocol in words, on unchanged and on corrupted images.
        shared: the fields that all records have in common.
    """
    clean, corrupted = about
    for corruption, values in _mean_scores(scores).items():
        words = clean if corruption == CLEAN else corrupted
        for metric, value in values.items():
            yield Measurement(
                about=words, metric=metric, better=better[metric], value=value, corruption=corruption, **shared
            )


def _mean_scores(scores: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return metrics by corruption, as means over its severities, and over all corruptions under ALL_CORRUPTIONS."""
    groups: dict[str, list[Mapping[str, float]]] = {}
    for corruption, values in scores:
        groups.setdefault(corruption, []).append(values)
        if corruption != CLEAN:
            groups.setdefault(ALL_CORRUPTIONS, []).append(values)
    return {
        corruption: {metric: statistics.fmean(values[metric] for values in group) for metric in group[0]}
        for corruption, group in groups.items()
    }


def max_or_min(better: str) -> Callable[..., Any]:
    """Return `max` if `better` is "higher", else `min`."""
    return max if better == "higher" else min
