"""Predict files of images, however many, and write what the model says about them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.export import ExportSample, with_names
from pipeline.predictions import write_predictions
from pipeline.sources import SourceRecord
from pipeline.steps.runtime import Progress, quiet
from tasks.inference.images import PreparedImage
from tasks.inference.model import BATCH, Threshold, TrainedModel

MOST_LISTED = 1000
"""The most unreadable files that are listed; all are counted."""
PROGRESS_IMAGES = 20
"""Number of images between progress updates."""


@dataclasses.dataclass
class FileProblems:
    """Images that can't be used: counted, and the first ones listed with the reason."""

    count: int = 0
    first: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        self.count += 1
        if len(self.first) < MOST_LISTED:
            self.first.append({"file": name, "reason": reason})

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "first": self.first}


@dataclasses.dataclass(frozen=True)
class FilesRequest:
    """Files of images, and how a model is to predict them."""

    images: Iterable[SourceRecord]
    total: int = 0
    """About how many images there are, for the progress."""
    heads: Sequence[str] = ()
    """The heads to predict; none for all."""
    threshold: Threshold = None
    batch: int = BATCH
    progress: Progress = quiet
    problems: FileProblems = dataclasses.field(default_factory=FileProblems)

    def counted(self, step: str) -> Iterator[SourceRecord]:
        """Yield the images, and report the progress."""
        for number, image in enumerate(self.images):
            if number % PROGRESS_IMAGES == 0:
                share = min(1.0, number / max(self.total, 1))
                self.progress(step, share, f"{number:,}/{max(self.total, number):,} images")
            yield image


def predict_files(model: TrainedModel, request: FilesRequest, form: str, out: Path) -> dict[str, Any]:
    """Write the labels of images to the folder `out` in a form, whole or not at all; return its `predictions.json`.

    Raises ConfigError for an unknown form or head or an unusable folder, DataError if not one image can be read.
    """
    labels = model.labels(request.heads)
    thresholds = model.thresholds(request.threshold, request.heads)

    def about() -> dict[str, Any]:
        return {"model": model.name, "thresholds": thresholds, "unreadable": request.problems.to_json()}

    return write_predictions(form, out, labels, with_names(_samples(model, request), "source"), about)


def _samples(model: TrainedModel, request: FilesRequest) -> Iterator[ExportSample]:
    problems, any_found = request.problems, False
    stream = model.stream(
        request.counted("predict"), request.threshold, request.batch, request.heads, on_error=problems.add
    )
    for labels in stream:
        any_found, image = True, labels.image
        key, channels = image_key(image), image.source.channels
        yield ExportSample(key, image.data, image.suffix, labels.size, labels.name, labels.values, channels=channels)
    check_any(any_found, problems)


def image_key(image: PreparedImage) -> str:
    """Return the first 16 hex digits of the sha256 of the image's file, as in image stores."""
    return hashlib.sha256(image.data).hexdigest()[:16]


def check_any(found: bool, problems: FileProblems) -> None:
    """Raise DataError unless an image could be used."""
    if found:
        return
    if not problems.count:
        raise DataError("no images found; in folders they are known by their suffix.")
    first = problems.first[0]
    raise DataError(f"not one of {problems.count:,} images can be used; the first: {first['file']}: {first['reason']}")
