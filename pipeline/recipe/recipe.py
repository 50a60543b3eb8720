"""The recipe as a frozen pydantic model: one YAML file that describes a whole run. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.errors import ConfigError
from pipeline.recipe.base import BaseConfig, Name
from pipeline.recipe.comparison import CompareConfig
from pipeline.recipe.evaluation import EvaluateConfig
from pipeline.recipe.plugins import CHOSEN, KindOf
from pipeline.recipe.runtime import RuntimeConfig
from pipeline.recipe.source import SourceConfig
from pipeline.recipe.stage import StageConfig, resolved
from pipeline.recipe.student import LabellingConfig, StudentConfig
from pipeline.recipe.teacher import TeacherConfig


class Recipe(BaseConfig):
    """A recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run; the name of its folder begins with it."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    runtime: RuntimeConfig = RuntimeConfig()
    """How to use the machine."""
    data: dict[Name, Annotated[SourceConfig, KindOf(*CHOSEN["data"])]]
    """Sets of images by name, labelled or not."""
    shard_images: int = Field(default=500, ge=1)
    """Images per shard, the unit of storage, labelling and retry."""
    teachers: dict[Name, Annotated[TeacherConfig, KindOf(*CHOSEN["teachers"])]]
    """Teachers by name."""
    pool: list[str]
    """Sets whose training images all teachers label and the student learns from, in order."""
    labelling: LabellingConfig = LabellingConfig()
    """How the pool is labelled."""
    student: StudentConfig
    """The multi-task student."""
    stages: list[Annotated[StageConfig, KindOf(*CHOSEN["stages"])]] = []
    """Self-supervised pretraining from the student to your domain, one stage after the other."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured at the end of a run."""
    compare: dict[Name, CompareConfig] = {}
    """Comparisons of self-supervised methods by name, for `must compare`; `must run` leaves them out."""

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        for name in self.pool:
            if name not in self.data:
                raise ValueError(f"pool names {name!r}, which is not under data; there are {', '.join(self.data)}")
        for name, teacher in self.teachers.items():
            wanted = getattr(teacher, "data", None)
            if wanted is not None and wanted not in self.data:
                raise ValueError(
                    f"teachers.{name}.data is {wanted!r}, not under data; there are {', '.join(self.data)}"
                )
        for key in ("sets", "probe_sets", "finetune"):
            for name in getattr(self.evaluate, key) or ():
                if name not in self.data:
                    raise ValueError(f"evaluate.{key} names {name!r}, not under data; there are {', '.join(self.data)}")
        for name in self.student.loss_weights:
            if name not in self.teachers:
                known = ", ".join(self.teachers)
                raise ValueError(f"student.loss_weights names {name!r}, not under teachers; there are {known}")
        self._truths_exist()
        self._stages_fit()
        tasks = {teacher.task for teacher in self.teachers.values()}
        for name in self.student.thresholds:
            if name not in self.teachers and name not in tasks:
                raise ValueError(
                    f"student.thresholds names {name!r}; there are the teachers {', '.join(self.teachers)} "
                    f"and the tasks {', '.join(sorted(tasks))}"
                )
        return self

    def _truths_exist(self) -> None:
        for teacher, names in self.student.truths.items():
            if teacher not in self.teachers:
                known = ", ".join(self.teachers)
                raise ValueError(f"student.truths names {teacher!r}, not under teachers; there are {known}")
            for name in names:
                if name not in self.data:
                    known = ", ".join(self.data)
                    raise ValueError(f"student.truths.{teacher} names {name!r}, not under data; there are {known}")

    def chain(self) -> list[StageConfig]:
        """Return the stages with start, backbone and image size filled in. Raises ConfigError as `resolved` does."""
        return resolved(self.stages, (self.student.backbone, self.student.image_size))

    def _stages_fit(self) -> None:
        names = [stage.name for stage in self.stages]
        for number, stage in enumerate(self.stages):
            if stage.name in names[:number]:
                raise ValueError(f"two stages are called {stage.name!r}")
            for name in stage.data:
                if name not in self.data:
                    raise ValueError(
                        f"stage {stage.name!r} names {name!r}, not under data; there are {', '.join(self.data)}"
                    )
        try:
            self.chain()
        except ConfigError as error:
            raise ValueError(str(error).rstrip(".")) from error
