"""Vision tasks, one folder each: `label.py` (torch-free) is what its labels are, `model.py` how it is learned.

The folder's name is the task's name in recipes and stores; nothing else has to be told about a new one.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from pipeline.errors import require_one_of
from pipeline.stores.labels import Label, LabelSpace

if TYPE_CHECKING:
    from tasks.task import Task


def names() -> list[str]:
    """The tasks there are, by their folders."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__) if found.ispkg)


def label(space: LabelSpace) -> Label:
    """What labels of this space are on disk and to the eye. Loads no torch."""
    task = require_one_of(space.task, names(), "Task")
    made: Label = importlib.import_module(f"tasks.{task}.label").TaskLabel(space)
    return made


def model(space: LabelSpace) -> Task:
    """How labels of this space are learned."""
    task = require_one_of(space.task, names(), "Task")
    made: Task = importlib.import_module(f"tasks.{task}.model").TaskModel(space)
    return made
