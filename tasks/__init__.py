"""Vision tasks, one folder each: `label.py` (torch-free) says what labels are on disk, `model.py` how they are learned.

A folder's name is the task's name in recipes and stores. A new folder needs no registration.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import DataError, require_one_of
from pipeline.stores.calibration import Calibration
from pipeline.stores.labels import Label, LabelSpace, check_columns, read_metadata

if TYPE_CHECKING:
    from tasks.task import Task


def names() -> list[str]:
    """Return the tasks' names: folders with a `label.py`, unless the name begins with `_`."""
    return _names(tuple(__path__))


@functools.cache
def _names(folders: tuple[str, ...]) -> list[str]:
    return sorted(path.parent.name for folder in folders for path in Path(folder).glob("[!_]*/label.py"))


def label(space: LabelSpace, calibration: Calibration | None = None) -> Label:
    """Return the `TaskLabel` of the space's task. Loads no torch. Raises ConfigError if there is no such task."""
    return _load(space, "label").TaskLabel(space, calibration)


def label_of_file(schema: pa.Schema, file: object) -> Label:
    """Return how the labels of a file with this schema are read. Raises DataError if it is no whole label file's."""
    metadata = read_metadata(schema, file)
    space = LabelSpace.from_json(metadata["space"])
    if space.task not in names():
        raise DataError(f"{file}: holds labels of the task {space.task!r:.40}; there are {', '.join(names())}.")
    found = label(space).calibrated_as(metadata)
    check_columns(schema, found, file)
    return found


def model(space: LabelSpace) -> Task:
    """Return the `TaskModel` of the space's task. Raises ConfigError if there is no such task."""
    return _load(space, "model").TaskModel(space)


def _load(space: LabelSpace, module: str) -> ModuleType:
    return importlib.import_module(f"tasks.{require_one_of(space.task, names(), 'Task')}.{module}")
