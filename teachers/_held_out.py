"""Measure a teacher on held-out images with true labels: its metrics, and the calibration of its scores. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, first_line
from pipeline.steps.artifact import Inputs, read_json
from pipeline.stores.calibration import Calibration

if TYPE_CHECKING:
    from tasks.prediction import Predictor
    from tasks.scoring import Accumulator

CALIBRATE = "calibrate"
"""Key of a teacher's step: the set on whose held-out images it is calibrated; missing if it is not."""


@dataclasses.dataclass(frozen=True)
class HeldOutResult:
    """Metrics and calibration of a teacher from held-out images; `split` is that of the set it was trained on."""

    split: str | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    calibration: Calibration | None = None
    shortage: str | None = None
    """Why there is no calibration, although one was asked for."""

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
    config: Mapping[str, Any], inputs: Inputs, out: Path, predictor: Predictor, trained_on: str | None = None
) -> HeldOutResult:
    """Score a teacher on the held-out images of the set `trained_on`, and calibrate it on those of `config[CALIBRATE]`.

    If these are one set, its images are predicted once. The teacher's `model.json` is in `out`. Raises ConfigError if
    the labels of the set for calibration do not fit the teacher.
    """
    from tasks.calibration import Calibrator

    calibrated_on = config.get(CALIBRATE)
    task = predictor.heads[config["name"]]
    metric, calibrator = task.metrics(), Calibrator(task.scored_examples)
    accumulators: dict[str, list[Accumulator]] = {}
    for data, accumulator in ((trained_on, metric), (calibrated_on, calibrator)):
        if data is not None:
            accumulators.setdefault(data, []).append(accumulator)
    splits = _predict_held_out(config, inputs, out, predictor, accumulators)
    scores = metric.compute() if splits.get(trained_on) else {}
    shortage = None if calibrated_on is None else calibrator.shortage()
    split = splits.get(calibrated_on)
    calibration = calibrator.fit(calibrated_on, split) if calibrated_on and split and not shortage else None
    return HeldOutResult(splits.get(trained_on), scores, calibration, shortage)


def _predict_held_out(
    config: Mapping[str, Any],
    inputs: Inputs,
    out: Path,
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
            predictor.setup(inputs.runtime, read_json(out / "model.json"))
            dataset = true_label_dataset(ingested, split, {name: space.task})
            update_metrics(predictor, dataset, name, measured, inputs.runtime)
    return splits


def measure_published(
    config: Mapping[str, Any], inputs: Inputs, out: Path, load: Callable[[Path], Predictor]
) -> HeldOutResult:
    """Calibrate a teacher of published weights, whose files are in `out`, if the recipe names a set for that.

    Raises ConfigError if the model can't take images of the size that it is to get.
    """
    predictor = load(out)
    _check_image_size(config["name"], predictor)
    return HeldOutResult() if config.get(CALIBRATE) is None else measure(config, inputs, out, predictor)


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
