"""The steps that compare self-supervised methods. Their methods' settings are read by the methods' own classes, which
load torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from flows.plan.evaluation_steps import (
    Spaces,
    about,
    backbone_of,
    check_how,
    finetune_step,
    how,
    probe_step,
    reads,
    start,
)
from flows.plan.stage_steps import Training, check_classes, pool_step, settings, stage_step, thinning
from pipeline.data import sampling
from pipeline.errors import ConfigError, error_context, require_one_of
from pipeline.recipe.base import FitConfig
from pipeline.recipe.comparison import BACKBONES, COMPARE, NO_STAGE, SUPERVISED, CompareConfig, Trial
from pipeline.recipe.evaluation import StartConfig
from pipeline.recipe.plugins import CHOSEN, modules
from pipeline.recipe.reader import read_section
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.stage import COMPARED, STUDENT, StageConfig
from pipeline.steps.artifact import Step


def comparing_steps(recipe: Recipe, seen: tuple[str, ...]) -> Iterator[Step]:
    """The steps that the recipe's `compare` asks for; `seen`: the steps that tell which images there are in any set,
    and which were rejected.
    """
    for name, config in recipe.compare.items():
        yield pool_step(f"{COMPARED}{name}", config.data, seen, thinning(config.long_tail, recipe))
        for trial in trials(recipe, config):
            yield from _Trial(recipe, name, trial).steps()


def trials(recipe: Recipe, config: CompareConfig) -> Iterator[Trial]:
    """Everything that a comparison trains or measures."""
    return config.trials(_backbones(recipe, config))


def _backbones(recipe: Recipe, config: CompareConfig) -> dict[str, str]:
    """What the student and each of a comparison's starts have; of scratch, the student's."""
    return {said: backbone_of(said, recipe) for said in {*config.starts, STUDENT}}


def compares(step: str) -> bool:
    """Whether a step is made for a comparison alone, by its name."""
    return step.startswith((f"{COMPARE}.", f"pool.{COMPARED}"))


class _Trial:
    """The steps of one trial: its training, if it has one, and its measurements."""

    def __init__(self, recipe: Recipe, comparison: str, trial: Trial) -> None:
        self.recipe, self.config, self.trial = recipe, recipe.compare[comparison], trial
        self.comparison, self.stage = comparison, f"{COMPARED}{comparison}"
        self.name, self.seed = f"{COMPARE}.{comparison}.{trial.name}", recipe.seed + trial.seed
        found = start(trial.start, recipe, trial.backbone, f"{COMPARE}.{comparison}.starts")
        self.start = found.model_copy(update={"image_size": self.config.image_size or recipe.student.image_size})

    def steps(self) -> Iterator[Step]:
        begun = self.start
        if self.trial.method != NO_STAGE:
            training = self._supervised() if self.trial.method == SUPERVISED else self._stage()
            begun = StartConfig(name=self.trial.name, step=training.name, image_size=self.start.image_size)
            yield training
        told = {**how(self.config, self.recipe), "set": self.config.measured_on, "splits": self.config.splits}
        told |= {"seeds": 1, "seed": self.seed, "trial": self.trial.to_json()}
        if self.config.probes:
            yield probe_step(f"{self.name}.probe", begun, told)
        if self.config.finetune:
            yield finetune_step(f"{self.name}.finetune", begun, told)

    def _stage(self) -> Step:
        return stage_step(self.name, self.stage_config(), Training(self.start.step, self.seed))

    def _supervised(self) -> Step:
        said = self.config.supervised | {"steps": self.trial.steps, "batch": self.config.batch}
        config: dict[str, Any] = {
            "name": self.name,
            **about(self.start),
            "set": self.config.measured_on,
            "pool": f"pool.{self.stage}",
            "share": self.trial.share,
            "supervised": settings(supervised_schedule(self.comparison, said)),
            "width": self.recipe.student.width,
            "proposals": self.recipe.student.proposals,
            "seed": self.seed,
            **sampling.version(self.trial.share != 1),
        }
        inputs = reads(self.start, f"pool.{self.stage}", f"data.{self.config.measured_on}")
        return Step(self.name, "evaluation.comparison.supervised_baseline:train", config, inputs, resumes=True)

    def stage_config(self) -> StageConfig:
        """The method's stage. ConfigError names what is wrong with its settings."""
        trial, begin = self.trial, self.start
        own = {key: value for key, value in self.config.methods[trial.method].items() if key != BACKBONES}
        said = {
            "statistics": "backbone",
            **own,
            "name": self.stage,
            "data": self.config.data,
            "start": begin.weights or (STUDENT if begin.step else trial.start),
            "backbone": trial.backbone,
            "image_size": begin.image_size,
            "share": trial.share,
            "long_tail": self.config.long_tail,
            "steps": trial.steps,
            "batch": self.config.batch,
        }
        package, key = CHOSEN["stages"]
        place = f"{COMPARE}.{self.comparison}.methods.{trial.method}"
        method = require_one_of(str(said[key]), modules(package), f"{place}.{key}:")
        made: StageConfig = read_section(importlib.import_module(f"{package}.{method}").Config, said, place)
        return made


def supervised_schedule(comparison: str, said: Mapping[str, Any]) -> FitConfig:
    """The schedule of supervised training. ConfigError names what is wrong with it."""
    return read_section(FitConfig, said, f"{COMPARE}.{comparison}.supervised")


def stages_of(recipe: Recipe) -> dict[str, StageConfig]:
    """What the methods of all comparisons do on every backbone they are crossed with, by what errors call it."""
    found = {}
    for name, config in recipe.compare.items():
        for trial in trials(recipe, config):
            if trial.method not in (NO_STAGE, SUPERVISED):
                place = f"{COMPARE}.{name}.methods.{trial.method} on {trial.backbone}"
                found[place] = _Trial(recipe, name, trial).stage_config()
    return found


def starts_of(recipe: Recipe) -> dict[str, StartConfig]:
    """What comparisons start from that is weights in a file, by what errors call it."""
    found = {}
    for name, config in recipe.compare.items():
        for trial in trials(recipe, config):
            start = _Trial(recipe, name, trial).start
            if start.weights:
                found[f"{COMPARE}.{name}.starts: {start.name}"] = start
    return found


def check_comparing(recipe: Recipe, spaces: Spaces) -> None:
    """Raise ConfigError for sets, probes or a schedule that are not there, or a set without labels to measure on."""
    for name, config in recipe.compare.items():
        _check(f"{COMPARE}.{name}", config, spaces)
        for said in config.starts:
            start(said, recipe, place=f"{COMPARE}.{name}.starts")
        _check_backbones(f"{COMPARE}.{name}.methods", config, _backbones(recipe, config))
        names = [trial.name for trial in trials(recipe, config)]
        again = next((each for number, each in enumerate(names) if each in names[:number]), None)
        if again:
            raise ConfigError(
                f"{COMPARE}.{name}.starts: two of them would be called {again!r}: rename one of the files."
            )
    for place, stage in stages_of(recipe).items():
        with error_context(place):
            check_classes(stage, spaces)


def _check(place: str, config: CompareConfig, spaces: Spaces) -> None:
    for key, names in (("data", config.data), ("set", [config.measured_on])):
        for name in names:
            require_one_of(name, spaces, f"{place}.{key}:")
    check_how(place, config)
    if not config.probes and not config.finetune:
        raise ConfigError(f"{place}: neither probes nor finetune are asked for: nothing would be measured.")
    there = spaces[config.measured_on]
    if not there or (config.probes and "classification" not in there):
        raise ConfigError(
            f"{place}.set is {config.measured_on!r}, which has labels for {', '.join(sorted(there)) or 'nothing'}: "
            f"{'probes need class labels' if config.probes else 'there is nothing to fine-tune on'}."
        )


def _check_backbones(place: str, config: CompareConfig, there: Mapping[str, str]) -> None:
    """The backbones that methods are for are some of the comparison's, and each method is for one it is trained on."""
    trained = [backbone for _, backbone in config.pairs(there)]
    for method, said in config.methods.items():
        alone = [
            require_one_of(name, {*config.backbones, *trained}, f"{place}.{method}.{BACKBONES}:")
            for name in said.get(BACKBONES, trained)
        ]
        if not set(alone) & set(trained):
            raise ConfigError(
                f"{place}.{method}.{BACKBONES} is {alone}, but no start has one of these: starts are {config.starts}, "
                f"with {', '.join(dict.fromkeys(trained))}."
            )
