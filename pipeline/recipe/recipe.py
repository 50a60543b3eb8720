"""The recipe as a frozen pydantic model: one YAML file that describes a whole run. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, NamedTuple

from pydantic import Field, PrivateAttr, model_validator

from pipeline.errors import ConfigError
from pipeline.recipe.base import LONGEST_NAME, BaseConfig, Matching, Name, UniqueItems
from pipeline.recipe.comparison import CompareConfig
from pipeline.recipe.evaluation import EvaluateConfig
from pipeline.recipe.plugins import CHOSEN, KindOf
from pipeline.recipe.runtime import RuntimeConfig
from pipeline.recipe.source import SourceConfig
from pipeline.recipe.stage import StageConfig, resolved
from pipeline.recipe.student import LabellingConfig, StudentConfig
from pipeline.recipe.teacher import TeacherConfig

Location = tuple[str | int, ...]
"""The keys and positions that lead to a value of the recipe."""
RUN_NAME = Matching(
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    "name of a run",
    "letters, digits, '.', '_' and '-', the first one a letter or digit,",
)


class Expansion(NamedTuple):
    """A text in which variables of the environment were replaced."""

    written: str
    expanded: str


class Recipe(BaseConfig):
    """A recipe."""

    name: Annotated[str, Field(max_length=LONGEST_NAME), RUN_NAME]
    """Name of the run; the name of its folder begins with it."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    runtime: RuntimeConfig = RuntimeConfig()
    """How to use the machine."""
    data: dict[Name, Annotated[SourceConfig, KindOf(*CHOSEN["data"])]]
    """Sets of images by name, labelled or not."""
    shard_images: int = Field(default=500, ge=1)
    """Images per shard, the unit of storage, labelling and retry."""
    resized: dict[Name, Annotated[int, Field(ge=32)]] = {}
    """Sets of which trainings read copies that are made once: images whose shorter side has more than so many pixels
    are reduced to it, as in {garments: 320}. No training that reads the set may have a larger `image_size`."""
    teachers: dict[Name, Annotated[TeacherConfig, KindOf(*CHOSEN["teachers"])]] = Field(min_length=1)
    """Teachers by name."""
    pool: Annotated[list[str], UniqueItems] = Field(min_length=1)
    """Sets whose training images the student learns from, in order; all teachers label them, or those that name them
    under `labels`."""
    labelling: LabellingConfig = LabellingConfig()
    """How the pool is labelled."""
    student: StudentConfig
    """The multi-task student."""
    rounds: int = Field(default=1, ge=1, le=9)
    """Rounds of self-training. After each but the last one, the student labels the pool in the place of every teacher
    that it is not worse than, on held-out images, and a fresh student learns these labels."""
    stages: list[Annotated[StageConfig, KindOf(*CHOSEN["stages"])]] = []
    """Self-supervised pretraining from the student to your domain, one stage after the other."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured at the end of a run."""
    compare: dict[Name, CompareConfig] = {}
    """Comparisons of self-supervised methods by name, for `must compare`; `must run` leaves them out."""

    _variables: dict[Location, Expansion] = PrivateAttr(default_factory=dict)

    @property
    def variables(self) -> Mapping[Location, Expansion]:
        """The texts of the recipe that hold variables of the environment, by their place."""
        return self._variables

    def with_variables(self, variables: Mapping[Location, Expansion]) -> Recipe:
        """Return the recipe with what its file said where variables were replaced."""
        copy = self.model_copy()
        copy._variables = dict(variables)
        return copy

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        _require_known("resized", self.resized, "data", self.data)
        _require_known("pool", self.pool, "data", self.data)
        for name, teacher in self.teachers.items():
            wanted = [] if teacher.training_set is None else [teacher.training_set]
            _require_known(f"teachers.{name}.data", wanted, "data", self.data)
            named = [teacher.calibrate.data] if teacher.calibrate and teacher.calibrate.data else []
            _require_known(f"teachers.{name}.calibrate.data", named, "data", self.data)
            _require_known(f"teachers.{name}.domain", [teacher.domain] if teacher.domain else [], "data", self.data)
            _require_known(f"teachers.{name}.labels", teacher.labelled_sets or (), "pool", self.pool)
        for key in ("sets", "probe_sets", "finetune"):
            _require_known(f"evaluate.{key}", getattr(self.evaluate, key) or (), "data", self.data)
        for key in ("loss_weights", "applicability", "disagreement"):
            _require_known(f"student.{key}", getattr(self.student, key), "teachers", self.teachers)
        _require_known("student.truths", self.student.truths, "teachers", self.teachers)
        for name, names in self.student.truths.items():
            _require_known(f"student.truths.{name}", names, "data", self.data)
        for stage in self.stages:
            _require_known(f"stage {stage.name!r}", stage.data, "data", self.data)
        tasks = {teacher.task for teacher in self.teachers.values()}
        for name in self.student.thresholds:
            if name not in self.teachers and name not in tasks:
                raise ValueError(
                    f"student.thresholds names {name!r}; there are the teachers {', '.join(self.teachers)} "
                    f"and the tasks {', '.join(sorted(tasks))}"
                )
        self._stages_fit()
        return self

    @model_validator(mode="after")
    def _student_learns(self) -> Recipe:
        weights = self.student.loss_weights
        if not any(weights.get(name, 1) for name in self.teachers):
            raise ValueError(f"student.loss_weights {weights}: it learns from no teacher; give one of them a weight")
        return self

    def chain(self) -> list[StageConfig]:
        """Return the stages with start, backbone and image size filled in. Raises ConfigError as `resolved` does."""
        return resolved(self.stages, (self.student.backbone, self.student.image_size))

    def _stages_fit(self) -> None:
        names = [stage.name for stage in self.stages]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f"two stages are called {name!r}")
        try:
            self.chain()
        except ConfigError as error:
            raise ValueError(str(error).rstrip(".")) from error


def _require_known(place: str, names: Iterable[str], section: str, known: Collection[str]) -> None:
    """Raise ValueError unless the names that a place gives are among those of the section."""
    for name in names:
        if name not in known:
            raise ValueError(f"{place} names {name!r}, not under {section}; there are {', '.join(known)}")
