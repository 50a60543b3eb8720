"""The recipe: one YAML file that describes a whole run, read into frozen models. No torch.

Kinds of sources and teachers are found by their files: `kind: coco` is `pipeline/sources/coco.py` and its class
`Config`. Errors name the file, the path in it, the value, and what would have worked.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from pipeline.recipe.comparison import CompareConfig
from pipeline.errors import ConfigError, choose
from pipeline.recipe.evaluation import EvaluateConfig
from pipeline.storage.root import CACHE_GB
from pipeline.steps.runtime import Device, Precision
from pipeline.recipe.base import Name, Section
from pipeline.sources import SourceConfig
from pipeline.recipe.stage import StageConfig, resolved
from pipeline.recipe.teacher import TeacherConfig, TrainingConfig


class StudentConfig(TrainingConfig):
    """The multi-task student."""

    weighting: Literal["schedule", "equal", "uncertainty"] = "schedule"
    """MuST's rule from the schedules of teacher and student, all 1, or learned uncertainties."""
    loss_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weights by teacher, instead of the rule's (not with `uncertainty`); 0 leaves the teacher out."""
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Smallest score kept, by teacher or task; 0.5 for detection and segmentation, 0 elsewhere."""
    labels: Literal["true_first", "pseudo_only", "true_only"] = "true_first"
    """A true label wins over a pseudo label; or only one of the kinds."""
    truths: dict[str, list[str]] = {}
    """Sets by teacher whose true labels its head learns, as in {things: [corrected]}: of an image in several sets the
    first one's, and only then those of the set that the teacher learned from. They need not be in the pool: an image is
    known by its bytes. Classes have to be the teacher's, in its order."""

    def check_weights(self, scheduled: Mapping[str, bool]) -> None:
        """Raise ConfigError if the weighting can't weigh a teacher; `scheduled` tells who states a schedule."""
        if self.weighting == "uncertainty" and self.loss_weights:
            raise ConfigError("student.loss_weights can't be given with weighting: uncertainty, which learns them.")
        for name, states_it in scheduled.items():
            if self.weighting == "schedule" and not states_it and name not in self.loss_weights:
                raise ConfigError(
                    f"Teacher {name!r} states no schedule, which MuST's weighting works from: "
                    f"give student.loss_weights.{name}, for example 1.0, or set student.weighting: equal."
                )


class LabellingConfig(Section):
    """How the pool is labelled; none of it changes a label, but `max_failed` can refuse a run."""

    batch: int = Field(default=32, ge=1)
    """Images that go through a teacher at once."""
    max_failed: float = Field(default=0.02, ge=0, le=1)
    """Share of images that may fail to be labelled before the step fails."""
    student: bool = False
    """Whether the student labels the pool as well once it is trained, so that `must browse` can say where it and its
    teachers disagree."""


class RuntimeConfig(Section):
    """The machine: nothing here changes a result's fingerprint."""

    device: Device = "auto"
    """`auto` takes a GPU if there is one."""
    precision: Annotated[Precision, BeforeValidator(lambda value: str(value) if value == 32 else value)] = "auto"
    """`auto` measures whether bfloat16 is faster, for every model and for training and prediction apart."""
    runner: Literal["inline", "threads", "process", "ray", "dask"] = "threads"
    """`threads` runs the steps as a Prefect flow, each in a process of its own; `process`, `ray` and `dask` do so too,
    and label in many processes at once; `inline` runs the steps one after the other in this process, without Prefect.
    """
    address: str | None = None
    """Of a Ray or Dask cluster, as in ray://head:10001 or tcp://scheduler:8786; else they work on this machine."""
    label_workers: int = Field(default=0, ge=0)
    """Processes of this machine that label at once, with `process`, `ray` and `dask`; 0 = one per GPU, or per core."""
    training_processes: int = Field(default=1, ge=1)
    """Processes that train a network together, each on a GPU of its own; on a CPU they share its cores."""
    side_by_side: int = Field(default=0, ge=0)
    """Steps at work at once, for teachers that don't depend on each other; 0 = one per GPU, and one on a CPU."""
    workers: int = Field(default=0, ge=0)
    """Threads for decoding and encoding; 0 = one per core."""
    checkpoint_s: float = Field(default=60, ge=0)
    """Seconds between training states on disk, which are uploaded if the root is elsewhere."""
    cache_gb: float = Field(default=CACHE_GB, gt=0)
    """Gigabytes of this machine's disk for what was read from a root that is elsewhere (`--root s3://...`)."""


def modules(package: str) -> dict[str, str]:
    """Names and full names of a package's modules (not of its subpackages)."""
    paths = importlib.import_module(package).__path__
    return {found.name: f"{package}.{found.name}" for found in pkgutil.iter_modules(paths) if not found.ispkg}


Model = TypeVar("Model", bound=BaseModel)
CHOSEN = {"data": ("pipeline.sources", "kind"), "teachers": ("teachers", "kind"), "stages": ("selfsup", "method")}
"""Sections whose entries name a file: its package, and the key that names it."""


class KindOf:
    """Pydantic type of a config chosen by its `kind`, or another key: the class `Config` of the module of that name in
    `package`.
    """

    def __init__(self, package: str, key: str = "kind") -> None:
        self.package, self.key = package, key

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        classes = {name: importlib.import_module(module).Config for name, module in modules(self.package).items()}
        choices = {name: handler.generate_schema(cls) for name, cls in classes.items()}
        return core_schema.tagged_union_schema(choices, discriminator=self.key)


class Recipe(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """What the run is called: its folder's name begins with it."""
    seed: int = Field(default=0, ge=0)
    """Of everything that is drawn at random."""
    runtime: RuntimeConfig = RuntimeConfig()
    """The machine."""
    data: dict[Name, Annotated[SourceConfig, KindOf("pipeline.sources")]]
    """Sets of images by name, labelled or not."""
    shard_images: int = Field(default=500, ge=1)
    """Images per shard: the unit of storage, labelling and retry."""
    teachers: dict[Name, Annotated[TeacherConfig, KindOf("teachers")]]
    """Teachers by name."""
    pool: list[str]
    """Sets whose training images all teachers label and the student learns from, in this order."""
    labelling: LabellingConfig = LabellingConfig()
    """How the pool is labelled."""
    student: StudentConfig
    """The multi-task student."""
    stages: list[StageConfig] = []
    """Self-supervised pretraining from there to the user's domain, one stage after the other."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured at the end."""
    compare: dict[Name, CompareConfig] = {}
    """Comparisons of self-supervised methods by name: `must compare` makes them, `must run` does not."""

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
        """The stages with what each starts from filled in. ConfigError where that can't be: see `resolved`."""
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


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `key.sub=value` overrides applied. ConfigError says where and what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}).") from error
    return parse_recipe(text, str(path), overrides)


def parse_recipe(text: str, origin: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML text; `origin` is what errors call it."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}.")
    data = _apart(data)
    for override in overrides:
        apply_override(data, override)
    return read_section(recipe_class(data), expand(data, origin), origin)


def read_section(model: type[Model], said: Any, origin: str) -> Model:
    """What is said, as a model. ConfigError has a line for each thing that is wrong, beginning with the origin."""
    try:
        return model.model_validate(said)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(origin, problem, model, said) for problem in error.errors())) from error


def recipe_class(data: Mapping[str, Any]) -> type[Recipe]:
    """What reads these contents: a recipe without stages is read without torch, which their methods load."""
    if not data.get("stages"):
        return Recipe
    from pipeline.staged import StagedRecipe  # noqa: PLC0415 - loads torch

    return StagedRecipe


def _apart(value: Any) -> Any:
    """The same with no part in two places: what YAML's `*alias` shares, an override is to change in one."""
    if isinstance(value, dict):
        return {key: _apart(item) for key, item in value.items()}
    return [_apart(item) for item in value] if isinstance(value, list) else value


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in nested mappings; the value is YAML. In a list of named sections, `b` is a name."""
    path, found, value = override.partition("=")
    if not found or not path:
        raise ConfigError(f"-o {override!r}: write key.sub=value, for example student.epochs=3.")
    *parents, last = path.split(".")
    place = data
    for parent in parents:
        if isinstance(place, list):
            named = {each["name"]: each for each in place if isinstance(each, dict) and "name" in each}
            place = named[choose(parent, named, f"-o {override!r}:")]
            continue
        place = place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise ConfigError(f"-o {override!r}: {parent!r} holds the value {place!r} and has no keys.")
    if not isinstance(place, dict):
        raise ConfigError(f"-o {override!r}: {path.rpartition('.')[0]} is a list: name the section to change.")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"-o {override!r}: the value is not valid YAML: {error}") from error


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def expand(value: Any, origin: str) -> Any:
    """`${NAME}` and `${NAME:-default}` in strings replaced from the environment. ConfigError names a missing one."""
    if isinstance(value, dict):
        return {key: expand(item, origin) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, origin) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name) or default
        if found is None:
            raise ConfigError(f"{origin}: {value!r} needs the environment variable {name}, which is not set.")
        return found

    return _VARIABLE.sub(replace, value)


def explain(origin: str, problem: ErrorDetails, model: type[BaseModel], said: Any) -> str:
    """One line about one thing wrong in what is said: in a recipe, or in a section that is a `model`."""
    location, whole = [str(part) for part in problem["loc"]], issubclass(model, Recipe)
    if whole and len(location) > 2 and location[0] in CHOSEN:
        del location[2]  # pydantic's tag of the union, which is not in the file
    if whole and location[:1] == ["stages"] and len(location) > 1:
        location[1] = _stage_name(said["stages"], int(location[1]))
    where = f"{origin}: {'.'.join(location) or 'recipe'}" if whole else ".".join([origin, *location])
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        known = _known_keys(problem, Recipe if whole else model)
        near = difflib.get_close_matches(location[-1], known, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        return f"{where}: unknown key (value {value!r}).{guess} Known keys: {', '.join(known)}."
    if kind == "missing":
        return f"{where}: missing; it has to be given."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        package, key = CHOSEN[location[0]]
        known = sorted(modules(package))
        given = value.get(key) if isinstance(value, Mapping) else value
        near = difflib.get_close_matches(str(given), known, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        return f"{where}.{key}: {given!r} is not a {key}.{guess} Known: {', '.join(known)}."
    message = problem["msg"].removeprefix("Value error, ")
    quoted = f" (value {value!r})" if kind != "value_error" else ""
    return f"{where}: {message[0].lower()}{message[1:]}{quoted}."


def _stage_name(stages: Sequence[Any], number: int) -> str:
    """A stage's name, as overrides call it; its number if it has none."""
    stage = stages[number]
    return str(stage.get("name", number)) if isinstance(stage, Mapping) else str(number)


def _section(annotation: Any) -> Any:
    """The model of a key that may also be null."""
    return next((each for each in get_args(annotation) if hasattr(each, "model_fields")), annotation)


def _known_keys(problem: ErrorDetails, model: Any) -> list[str]:
    """The keys of the part of the model that an unknown key was given to, found by walking the error's path."""
    path = list(problem["loc"][:-1])
    while path:
        part = path.pop(0)
        if part in CHOSEN and model is Recipe:
            package, _ = CHOSEN[part]
            model = importlib.import_module(f"{package}.{path[1]}").Config
            path = path[2:]
        elif isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            if get_origin(annotation) is dict:
                _, annotation = get_args(annotation)
                path = path[1:]  # what the section is called
            model = _section(annotation)
    return list(model.model_fields)
