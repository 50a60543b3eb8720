"""Resolve a recipe once: open its data, and work out what its stages, measurements and comparisons start from.

Planning, checks and the preflight read the `ResolvedRecipe`; the recipe itself is what the user wrote. No torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from ingest.ingest import open_source
from ingest.rejections import REJECTED_IMAGES
from pipeline.errors import ConfigError, error_context, require_one_of
from pipeline.models.weights import weights_digest
from pipeline.recipe.base import BaseConfig, FitConfig
from pipeline.recipe.comparison import BACKBONES, COMMON, COMPARE, NO_STAGE, SUPERVISED, CompareConfig, Trial
from pipeline.recipe.evaluation import StartConfig, check_names, start_of
from pipeline.recipe.plugins import CHOSEN, modules
from pipeline.recipe.reader import read_section
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.stage import COMPARED, RESERVED_STARTS, SCRATCH, STUDENT, StageConfig
from pipeline.sources import BaseSource
from pipeline.stores.labels import LabelSpace
from pipeline.stores.rejections import NO_REJECTIONS, rejected_images

Spaces = Mapping[str, Mapping[str, LabelSpace]]
"""Label spaces by set and task."""


@dataclasses.dataclass(frozen=True)
class ResolvedTrial:
    """A row of a comparison with one seed: what it starts from, and the settings of its training if it has one."""

    trial: Trial
    start: StartConfig
    stage: StageConfig | None = None
    """Of a self-supervised method."""
    supervised: FitConfig | None = None
    """Of the supervised baseline."""


@dataclasses.dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with everything filled in that follows from its parts."""

    recipe: Recipe
    rejects: pa.Table
    """The images and labels that were rejected on the root: the table of `pipeline.stores.rejections`."""
    sources: Mapping[str, BaseSource]
    """The opened sets, by name: their files are there."""
    spaces: Spaces
    stages: tuple[StageConfig, ...]
    """In order, with what each starts from, its backbone and its image size filled in."""
    starts: tuple[StartConfig, ...]
    """The backbones that `evaluate` measures; none if it asks for neither probes nor fine-tuning."""
    comparisons: Mapping[str, tuple[ResolvedTrial, ...]]

    @property
    def data_steps(self) -> tuple[str, ...]:
        """Names of the steps that ingest the sets."""
        return tuple(f"data.{name}" for name in self.recipe.data)

    @property
    def image_steps(self) -> tuple[str, ...]:
        """Names of the steps that say which images there are: the sets, and the rejected images if there are any."""
        return (*self.data_steps, REJECTED_IMAGES) if len(rejected_images(self.rejects)) else self.data_steps

    @property
    def teacher_steps(self) -> tuple[str, ...]:
        """Names of the steps that make the teachers."""
        return tuple(f"teacher.{name}" for name in self.recipe.teachers)

    @property
    def labelling_steps(self) -> tuple[str, ...]:
        """Names of the steps that make the teachers that label the pool."""
        return tuple(f"teacher.{name}" for name, each in self.recipe.teachers.items() if not each.is_live)

    def models(self, comparisons: bool = True) -> dict[str, BaseConfig]:
        """Return the sections that name models, by their place in the recipe; those of `compare` if asked for."""
        found: dict[str, BaseConfig] = {f"teachers.{name}": each for name, each in self.recipe.teachers.items()}
        found["student"] = self.recipe.student
        found |= {f"stages.{stage.name}": stage for stage in self.stages}
        found |= {f"evaluate.starts: {start.name}": start for start in self.starts}
        return found | dict(self._compared_models()) if comparisons else found

    def _compared_models(self) -> Iterator[tuple[str, BaseConfig]]:
        for name, trials in self.comparisons.items():
            for each in trials:
                if each.start.weights:
                    yield f"{COMPARE}.{name}.starts: {each.start.name}", each.start
                if each.stage:
                    yield method_place(name, each.trial), each.stage


def resolve(recipe: Recipe, rejects: pa.Table = NO_REJECTIONS) -> ResolvedRecipe:
    """Open the sets of a recipe and fill in what follows from its parts. ConfigError begins with the place."""
    sources, spaces = {}, {}
    for name, config in recipe.data.items():
        with error_context(f"data.{name}"):
            sources[name] = open_source(config.model_dump(mode="json"))
            spaces[name] = sources[name].spaces()
    comparisons = {name: tuple(_trials(recipe, name, config)) for name, config in recipe.compare.items()}
    return ResolvedRecipe(
        recipe, rejects, sources, spaces, tuple(recipe.chain()), _measured_starts(recipe), comparisons
    )


def _measured_starts(recipe: Recipe) -> tuple[StartConfig, ...]:
    """Return the backbones that `evaluate` measures: those of its `starts`, and what the student starts from."""
    names = recipe.evaluate.backbone_starts([stage.name for stage in recipe.stages])
    if not names:
        return ()
    starts = [_start(name, recipe, recipe.student.backbone, "evaluate.starts") for name in names]
    own = _start(recipe.student.weights or SCRATCH, recipe, recipe.student.backbone, "student.weights")
    if not any(_same_weights(own, start) for start in starts):
        place = next((number for number, start in enumerate(starts) if start.step), len(starts))
        starts.insert(place, own)
    check_names(starts)
    return tuple(starts)


def _same_weights(one: StartConfig, other: StartConfig) -> bool:
    """Return True if two starts, the first of which no step leaves, are the same weights under any names."""
    if other.step or not (one.weights and other.weights):
        return one == other
    return weights_digest(one.weights) == weights_digest(other.weights)


def _start(name: str, recipe: Recipe, backbone: str, place: str) -> StartConfig:
    """Return what a recipe names as a start at `place`, for images of the size that backbones are measured at.

    Raises ConfigError if it is not there, or leaves no backbone.
    """
    teachers = {f"teacher.{each}": each for each in recipe.teachers}
    steps = [*(f"stage.{stage.name}" for stage in recipe.stages), *teachers]
    size = recipe.evaluate.image_size or recipe.student.image_size
    with error_context(place):
        start = start_of(name, steps, backbone, size)
        if start.weights:
            weights_digest(start.weights)  # raises if the file is missing
    teacher = teachers.get(start.step or "")
    if teacher and _teacher_backbone(teacher, recipe) is None:
        others = [step for step, each in teachers.items() if _teacher_backbone(each, recipe)]
        raise ConfigError(
            f"{place}: {name!r} is of kind {recipe.teachers[teacher].kind!r}, which leaves no backbone; "
            f"{', '.join([*others, *RESERVED_STARTS])} would work."
        )
    return start


def _teacher_backbone(teacher: str, recipe: Recipe) -> str | None:
    """Return the timm name of the backbone that a teacher leaves, if it leaves one."""
    with error_context(f"teachers.{teacher}"):
        return recipe.teachers[teacher].backbone_name()


def _backbone_of(start: str, recipe: Recipe) -> str:
    """Return the timm name of a start's backbone: the student's unless a stage or a teacher leaves another one."""
    stages = {f"stage.{stage.name}": stage.backbone for stage in recipe.chain()}
    teachers = {f"teacher.{name}": name for name in recipe.teachers}
    found = _teacher_backbone(teachers[start], recipe) if start in teachers else stages.get(start)
    return found or recipe.student.backbone


def _trials(recipe: Recipe, name: str, config: CompareConfig) -> Iterator[ResolvedTrial]:
    """Yield the rows of a comparison, seed by seed. ConfigError if two rows would have one name."""
    backbones = {start: _backbone_of(start, recipe) for start in {*config.starts, STUDENT}}
    _check_backbones(f"{COMPARE}.{name}.methods", config, backbones)
    names: set[str] = set()
    for trial in config.trials(backbones):
        if trial.name in names:
            raise ConfigError(
                f"{COMPARE}.{name}.starts: two of them would be called {trial.name!r}: rename one of the files."
            )
        names.add(trial.name)
        yield _resolve_trial(recipe, name, trial)


def _check_backbones(place: str, config: CompareConfig, backbones: Mapping[str, str]) -> None:
    """Raise ConfigError if a method's own `backbones` are not those of the comparison, or of none of its starts."""
    trained = [backbone for _, backbone in config.pairs(backbones)]
    for method, settings in config.methods.items():
        own = [
            require_one_of(backbone, {*config.backbones, *trained}, f"{place}.{method}.{BACKBONES}:")
            for backbone in settings.get(BACKBONES, trained)
        ]
        if not set(own) & set(trained):
            raise ConfigError(
                f"{place}.{method}.{BACKBONES} is {own}, but no start has one of these: starts are {config.starts}, "
                f"with {', '.join(dict.fromkeys(trained))}."
            )


def _resolve_trial(recipe: Recipe, name: str, trial: Trial) -> ResolvedTrial:
    config = recipe.compare[name]
    start = _start(trial.start, recipe, trial.backbone, f"{COMPARE}.{name}.starts")
    start = start.model_copy(update={"image_size": config.image_size or recipe.student.image_size})
    if trial.method == NO_STAGE:
        return ResolvedTrial(trial, start)
    if trial.method == SUPERVISED:
        settings = config.supervised | {"steps": trial.steps, "batch": config.batch}
        return ResolvedTrial(trial, start, supervised=read_section(FitConfig, settings, f"{COMPARE}.{name}.supervised"))
    return ResolvedTrial(trial, start, stage=_compared_stage(config, name, trial, start))


def _compared_stage(config: CompareConfig, name: str, trial: Trial, start: StartConfig) -> StageConfig:
    """Return the stage of a method in a comparison. ConfigError names what is wrong with the method's settings."""
    own = {key: value for key, value in config.methods[trial.method].items() if key != BACKBONES}
    common = {**FitConfig().model_dump(exclude={*COMMON, "accumulate"}), "drop_path": 0.0}
    shared = common if config.settings == "shared" else {}
    _check_shared_rate(f"{COMPARE}.{name}.methods.{trial.method}", shared, own)
    settings: dict[str, Any] = {
        "statistics": "backbone",
        **shared,
        **own,
        "name": f"{COMPARED}{name}",
        "data": config.data,
        "start": start.weights or (STUDENT if start.step else trial.start),
        "backbone": trial.backbone,
        "image_size": start.image_size,
        "share": trial.share,
        "long_tail": config.long_tail,
        "steps": trial.steps,
        "batch": config.batch,
    }
    package, key = CHOSEN["stages"]
    place = f"{COMPARE}.{name}.methods.{trial.method}"
    method = require_one_of(str(settings[key]), modules(package), f"{place}.{key}:")
    stage: StageConfig = read_section(importlib.import_module(f"{package}.{method}").Config, settings, place)
    return stage


def _check_shared_rate(place: str, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise ConfigError if a method states another optimizer than the shared one, but takes its learning rate."""
    if shared and own.get("optimizer", shared["optimizer"]) != shared["optimizer"] and "lr" not in own:
        raise ConfigError(
            f"{place}: optimizer is {own['optimizer']!r}, but lr ({shared['lr']:g}) is the one that all share for "
            f"{shared['optimizer']!r}: give lr as well."
        )


def method_place(comparison: str, trial: Trial) -> str:
    """Return where errors say that a method of a comparison is, on one of its backbones."""
    return f"{COMPARE}.{comparison}.methods.{trial.method} on {trial.backbone}"
