"""What a teacher's artifact says of itself, whatever made it: labelling, training and evaluation read it alike."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.steps.artifact import Artifact, read_json, write_json
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import LabelSpace

if TYPE_CHECKING:
    from tasks.prediction import Predictor

FILE = "teacher.json"


@dataclasses.dataclass(frozen=True)
class TeacherSchedule:
    """What MuST's weighting needs to know of how a teacher was trained."""

    batch: int
    lr: float


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher: its kind (a file in `teachers/`), label space, the set and schedule it was trained with, if it was,
    and its metrics on held-out images of that set.
    """

    kind: str
    space: LabelSpace
    data: str | None = None
    schedule: TeacherSchedule | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Leave the page in the teacher's folder."""
        write_json(folder / FILE, {**dataclasses.asdict(self), "space": self.space.to_json()})

    @classmethod
    def load(cls, made: Artifact) -> Teacher:
        """The page in a teacher's artifact."""
        about = made.load(FILE, read_json)
        schedule = TeacherSchedule(**about["schedule"]) if about["schedule"] else None
        return cls(about["kind"], LabelSpace.from_json(about["space"]), about["data"], schedule, about["scores"])


def open_teacher(made: Artifact) -> Predictor:
    """The teacher's model, as it was saved."""
    load: Callable[[Path], Predictor] = importlib.import_module(f"teachers.{Teacher.load(made).kind}").load
    return made.load_all(load)


def load_teacher(made: Artifact, runtime: Runtime) -> Predictor:
    """The teacher, ready to predict on this machine."""
    return open_teacher(made).setup(runtime, made.load("model.json", read_json))
