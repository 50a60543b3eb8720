"""Measure a teacher on held-out images: its metrics and the trivial baseline's, the calibration of its scores, and its
applicability. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, first_line
from pipeline.steps.artifact import Inputs, read_json
from pipeline.stores.calibration import Calibration
from pipeline.stores.labels import LabelSpace
from tasks.teacher import Teacher
from teachers._applicability import DOMAIN, fit_applicability
from teachers._label_checks import training_images

if TYPE_CHECKING:
    from ingest.dataset import IngestedSet
    from tasks.prediction import Predictor
    from tasks.scoring import Accumulator
    from tasks.task import Task

CALIBRATE = "calibrate"
"""Key of a teacher's step: the set on whose held-out images it is calibrated; missing if it is not."""


@dataclasses.dataclass(frozen=True)
class HeldOutResult:
    """Measurements of a teacher on held-out images: of the set it was trained on, or else calibrated on."""

    split: str | None = None
    """That of these images."""
    images: int = 0
    """Held-out images of that set with a label."""
    metric: str | None = None
    """The task's leading metric."""
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    baseline: dict[str, float] = dataclasses.field(default_factory=dict)
    """Metrics of the constant label that suits the set's training labels best; empty if it has none."""
    calibration: Calibration | None = None
    shortage: str | None = None
    """Why there is no calibration, although one was asked for."""
    applicability: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What `fit_applicability` returned."""

    def counts(self) -> dict[str, Any]:
        """Return what the manifest says of a teacher that was trained here."""
        measured = {"split": self.split, "held_out": self.images, "metric": self.metric}
        scores = {"scores": self.scores, "baseline": self.baseline}
        return {**measured, **scores, "applicability": self.applicability, **self.calibration_counts()}

    def published_counts(self) -> dict[str, Any]:
        """Return what the manifest says of published weights: no metrics if nothing told which images to measure on."""
        return self.counts() if self.split else {"applicability": self.applicability, **self.calibration_counts()}

    def published_teacher(self, kind: str, space: LabelSpace) -> Teacher:
        """Return the teacher of this kind that published weights make."""
        measured = self.scores, self.baseline, self.images
        return Teacher(kind, space, None, None, *measured, self.calibration)

    def calibration_counts(self) -> dict[str, Any]:
        """Return what the manifest says of the calibration; {} if none was asked for."""
        if self.shortage:
            return {"uncalibrated": self.shortage}
        if self.calibration is None or self.calibration.reliability is None:
            return {}
        found = self.calibration.reliability
        about = {key: getattr(found, key) for key in ("dataset", "split", "images", "examples")}
        return {"calibration": {**about, "ece_raw": found.raw.ece, "ece": found.calibrated.ece}}


def measure(
    config: Mapping[str, Any], inputs: Inputs, out: Path, predictor: Predictor, measured_on: str | None
) -> HeldOutResult:
    """Score a teacher on the held-out images of the set `measured_on`; calibrate it on those of `config[CALIBRATE]`.

    If these are one set, its images are predicted once. The teacher's `model.json` is in `out`, and its applicability,
    by the images of `config[DOMAIN]`, is written there. Raises ConfigError if the labels of the set for calibration do
    not fit the teacher.
    """
    from ingest.dataset import IngestedSet
    from tasks.calibration import Calibrator

    calibrated_on = config.get(CALIBRATE)
    task = predictor.heads[config["name"]]
    metric, calibrator = task.metrics(), Calibrator(task.scored_examples)
    accumulators: dict[str, list[Accumulator]] = {}
    for data, accumulator in ((measured_on, metric), (calibrated_on, calibrator)):
        if data is not None:
            accumulators.setdefault(data, []).append(accumulator)
    predictor.setup(inputs.runtime, read_json(out / "model.json"))
    splits = _predict_held_out(config, inputs, predictor, accumulators)
    shortage = None if calibrated_on is None else calibrator.shortage()
    split = splits.get(calibrated_on)
    found = HeldOutResult(
        calibration=calibrator.fit(calibrated_on, split) if calibrated_on and split and not shortage else None,
        shortage=shortage,
        applicability=fit_applicability(config.get(DOMAIN), inputs, out, predictor),
    )
    split = splits.get(measured_on)
    if measured_on is None or split is None:
        return found
    images, baseline = _measure_baseline(config["name"], task, IngestedSet(inputs[f"data.{measured_on}"]), split)
    leading = next(iter(task.better))
    return dataclasses.replace(
        found, split=split, images=images, metric=leading, scores=metric.compute(), baseline=baseline
    )


def _measure_baseline(name: str, task: Task, ingested: IngestedSet, split: str) -> tuple[int, dict[str, float]]:
    """Return how many held-out images there are with a label, and the metrics of the trivial baseline on them.

    Without training labels that tell anything there is no baseline: {}.
    """
    from ingest.true_labels import true_label_dataset
    from tasks.scoring import is_measurable, measure_constant

    held_out = true_label_dataset(ingested, split, {name: task.space.task})
    train = training_images(name, task.space.task, ingested)
    if not is_measurable(task, (train.values(index)[name] for index in range(len(train)))):
        return len(held_out), {}
    return len(held_out), measure_constant(task, name, train, held_out).compute()


def _predict_held_out(
    config: Mapping[str, Any],
    inputs: Inputs,
    predictor: Predictor,
    accumulators: Mapping[str, Sequence[Accumulator]],
) -> dict[str | None, str | None]:
    """Predict each set's held-out images once, for all its accumulators; return their splits, None without images."""
    from ingest.dataset import IngestedSet, check_labels_fit
    from ingest.true_labels import true_label_dataset
    from tasks.scoring import update_metrics

    name, splits = config["name"], dict[str | None, str | None]()
    space = predictor.heads[name].space
    for data, measured in accumulators.items():
        ingested = IngestedSet(inputs[f"data.{data}"])
        check_labels_fit(f"teachers.{name}.{CALIBRATE}", name, space, data, ingested.spaces)
        split = splits[data] = ingested.held_out_split("val", space.task)
        if split:
            dataset = true_label_dataset(ingested, split, {name: space.task})
            update_metrics(predictor, dataset, name, measured, inputs.runtime)
    return splits


def measure_published(
    config: Mapping[str, Any], inputs: Inputs, out: Path, load: Callable[[Path], Predictor]
) -> HeldOutResult:
    """Score and calibrate a teacher of published weights, whose files are in `out`, and fit its applicability.

    Each only if the recipe names a set for it.

    Raises ConfigError if the model can't take images of the size that it is to get.
    """
    predictor = load(out)
    _check_image_size(config["name"], predictor)
    if config.get(CALIBRATE) is None and config.get(DOMAIN) is None:
        return HeldOutResult(applicability=fit_applicability(None, inputs, out, predictor))
    return measure(config, inputs, out, predictor, config.get(CALIBRATE))


def _check_image_size(name: str, predictor: Predictor) -> None:
    import torch

    side = predictor.preprocessing.size
    try:
        predictor.predict(torch.zeros(1, 3, side, side, dtype=torch.uint8), [(side, side)])
    except Exception as error:  # models raise errors of any type for a size that they can't take
        raise ConfigError(
            f"teachers.{name}: the model can't take images of {side} x {side} pixels ({first_line(error)}): set "
            "another image_size, or leave it out for the model's own."
        ) from error
