"""Label Studio's own JSON export: rectangles, polygons, ellipses and choices of images.

Boxes are those that hold a shape; numbers are percent of the image. Choices are classes of the whole image: one each is
the task classification, several each are multilabel. Of several annotations of an image the ground truth counts, or
else the last; an image without one was not labelled. Predictions are passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic_core import from_json

from pipeline.errors import ConfigError, DataError, require_one_of
from pipeline.sources import TrueLabels
from pipeline.sources._boxes import scaled
from pipeline.sources._classes import check_distinct
from pipeline.sources._label_studio import read_task
from pipeline.sources._task_files import AnnotatedImage, Size, TaskFileConfig, TaskFileSource
from pipeline.storage.json_text import load_json
from pipeline.storage.path import StoragePath
from pipeline.stores.labels import LabelSpace

HEAD = 1 << 20
"""Bytes of a file that tell whose it is."""
MOST_BYTES = 1 << 30
PERCENT = 100


class Config(TaskFileConfig):
    """A folder with images and Label Studio's JSON files."""

    kind: Literal["label_studio"] = "label_studio"
    choices: str | None = None
    """Name of the control whose choices are the classes of images, if the tasks have several such controls."""


class Source(TaskFileSource):
    """Reads the files. Raises ConfigError if a path does not exist; later DataError on other JSON."""

    suffix = ".json"

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(config)

    @classmethod
    def is_own(cls, file: StoragePath) -> bool:
        try:
            data = file.read(0, min(HEAD, file.stamp()[0]))
            head = from_json(data.decode(json.detect_encoding(data), "ignore"), allow_partial=True)
        except (DataError, ValueError):
            return False
        first = head[0] if isinstance(head, list) and head else None
        made = first.get("annotations") if isinstance(first, dict) else None
        if not isinstance(first, dict) or not isinstance(made, list):
            return False
        # the image is named behind the annotations, which may be long
        return "result" in made[0] if made and isinstance(made[0], dict) else isinstance(first.get("data"), dict)

    def read_file(self, file: StoragePath) -> tuple[Sequence[str], Sequence[AnnotatedImage]]:
        if file.stamp()[0] > MOST_BYTES:
            raise DataError(f"has more than {MOST_BYTES:,} bytes")
        try:
            tasks = load_json(file.read())
        except ValueError as error:
            raise DataError(f"can't be read as JSON ({error})") from error
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise DataError("not Label Studio's JSON: it is no list of tasks")
        return (), list(map(read_task, tasks))

    def spaces(self) -> dict[str, LabelSpace]:
        check_distinct(self._choice_classes)
        spaces = super().spaces()
        if self._choice_classes:
            spaces[self._task] = LabelSpace(self._task, self._choice_classes)
        return spaces

    @functools.cached_property
    def _control(self) -> str | None:
        """The name of the control whose choices are classes of images; None if there is none."""
        controls = {control for entry in self.entries for control, _ in entry.choices}
        if self.config.choices is not None:
            return require_one_of(self.config.choices, controls, "choices: the control")
        if len(controls) > 1:
            raise ConfigError(
                f"{self.root}: images have choices of {', '.join(sorted(controls))}: name one as `choices`"
            )
        return next(iter(controls), None)

    def _chosen(self, entry: AnnotatedImage) -> list[str]:
        return [name for control, name in entry.choices if control == self._control]

    @functools.cached_property
    def _choice_classes(self) -> tuple[str, ...]:
        return tuple(sorted({name for entry in self.entries for name in self._chosen(entry)}))

    @functools.cached_property
    def _task(self) -> Literal["classification", "multilabel"]:
        return "multilabel" if any(len(self._chosen(entry)) > 1 for entry in self.entries) else "classification"

    def truth(self, entry: AnnotatedImage, size: Size) -> TrueLabels:
        scale = (size[0] / PERCENT, size[1] / PERCENT)
        shapes = entry.shapes and tuple(
            dataclasses.replace(shape, corners=shape.corners and scaled(shape.corners, scale)) for shape in entry.shapes
        )
        truth = super().truth(dataclasses.replace(entry, shapes=shapes), size)
        if not self._choice_classes or entry.shapes is None:
            return truth
        probs = np.zeros(len(self._choice_classes), np.float32)
        for name in (chosen := self._chosen(entry)):
            probs[self._choice_classes.index(name)] = 1
        if chosen:
            truth.values[self._task] = {"probs": probs}
        else:
            truth.notes.append("nothing chosen")
        return truth
