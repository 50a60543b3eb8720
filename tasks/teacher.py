"""A teacher's artifact: the page `teacher.json` that every kind of teacher writes, and its model as a `Predictor`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tasks
from pipeline.steps.artifact import Artifact, read_json, write_json
from pipeline.steps.runtime import Runtime
from pipeline.stores.calibration import Calibration
from pipeline.stores.labels import Label, LabelSpace

if TYPE_CHECKING:
    from tasks.prediction import Predictor

FILE = "teacher.json"
APPLICABILITY_FILE = "applicability.safetensors"
"""What `tasks.applicability` compares images with, of teachers that have it."""


@dataclasses.dataclass(frozen=True)
class TeacherSchedule:
    """The b_i and lr_i of MuST's loss weights, w_i = (b_s lr_i) / (b_i lr_s)."""

    batch: int
    """Images per optimizer step."""
    lr: float
    """Peak learning rate."""
    optimizer: str
    """`FitConfig.optimizer_name`: the rule compares learning rates of one optimizer."""


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The content of `teacher.json`.

    Example:
        schedule = TeacherSchedule(64, 1e-3, "adamw")
        Teacher("supervised", LabelSpace("depth"), "rooms", schedule, {"rmse": 0.4}).write(out)
    """

    kind: str
    """Its file in `teachers/`."""
    space: LabelSpace
    """What its labels mean."""
    data: str | None = None
    """The set it was trained on, if any."""
    schedule: TeacherSchedule | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    """Metrics on held-out images of that set, or else of the one it is calibrated on, the leading one first; empty if
    there are none."""
    baseline: dict[str, float] = dataclasses.field(default_factory=dict)
    """The same metrics of the trivial baseline, on the same images; empty if the set has no images to train on."""
    held_out: int = 0
    """How many images these are."""
    calibration: Calibration | None = None
    """From its scores to probabilities of being right; None if a score is its own probability."""

    @property
    def label(self) -> Label:
        """The form of its labels on disk, calibrated."""
        return tasks.label(self.space, self.calibration)

    def open_model(self, folder: Path) -> Predictor:
        """Load its model from the folder of its files, with `load(folder)` of its kind's file."""
        load: Callable[[Path], Predictor] = importlib.import_module(f"teachers.{self.kind}").load
        return load(folder)

    def write(self, folder: Path) -> None:
        """Write `teacher.json` into the folder of the teacher's artifact."""
        calibration = self.calibration and self.calibration.to_json()
        write_json(
            folder / FILE, {**dataclasses.asdict(self), "space": self.space.to_json(), "calibration": calibration}
        )

    @classmethod
    def load(cls, artifact: Artifact) -> Teacher:
        """Read `teacher.json` of a teacher's artifact."""
        return cls.from_json(artifact.load(FILE, read_json))

    @classmethod
    def from_json(cls, fields: Any) -> Teacher:
        """Return the teacher that a `teacher.json` describes."""
        schedule = TeacherSchedule(**fields["schedule"]) if fields["schedule"] else None
        space, calibration = LabelSpace.from_json(fields["space"]), Calibration.from_json(fields["calibration"])
        measured = {name: fields[name] for name in ("data", "scores", "baseline", "held_out")}
        return cls(fields["kind"], space, schedule=schedule, calibration=calibration, **measured)


def open_teacher(artifact: Artifact) -> Predictor:
    """Load the teacher's model: on the CPU, in float32."""
    return artifact.load_all(Teacher.load(artifact).open_model)


def load_teacher(artifact: Artifact, runtime: Runtime) -> Predictor:
    """Load the teacher's model, on the device and in the precision that are fastest on this machine."""
    return open_teacher(artifact).setup(runtime, artifact.load("model.json", read_json))
