"""The steps that compare self-supervised methods. Their methods' settings are read by the methods' own classes, which
load torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from flows.measuring import Spaces, check_how, finetune_step, how, probe_step, start
from flows.staging import Training, pool_step, settings, stage_step
from pipeline.artifacts import Step
from pipeline.comparing import NO_STAGE, SUPERVISED, CompareConfig, Trial
from pipeline.config import CHOSEN, Recipe, modules
from pipeline.errors import ConfigError, choose
from pipeline.evaluating import StartConfig
from pipeline.sections import FitConfig
from pipeline.stages import STUDENT, StageConfig
from pipeline.weights import weights_digest

NAME = "compare"
POOL = f"pool.{NAME}"


def comparing_steps(recipe: Recipe, seen: tuple[str, ...]) -> Iterator[Step]:
    """The steps that the recipe's `compare` asks for; `seen`: the steps that tell which images there are in any set,
    and which were rejected.
    """
    if recipe.compare is None:
        return
    yield pool_step(NAME, recipe.compare.data, seen)
    for trial in recipe.compare.trials(recipe.student.backbone):
        yield from _Trial(recipe, recipe.compare, trial).steps()


class _Trial:
    """The steps of one trial: its training, if it has one, and its measurements."""

    def __init__(self, recipe: Recipe, config: CompareConfig, trial: Trial) -> None:
        self.recipe, self.config, self.trial = recipe, config, trial
        self.name, self.seed = f"{NAME}.{trial.name}", recipe.seed + trial.seed
        found = start(trial.start, recipe, trial.backbone)
        self.start = found.model_copy(update={"image_size": config.image_size or recipe.student.image_size})

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
        stage = stage_of(self.config, self.trial, self.start)
        return stage_step(self.name, stage, Training(self.start.step, self.seed))

    def _supervised(self) -> Step:
        said = self.config.supervised | {"steps": self.trial.steps, "batch": self.config.batch}
        config: dict[str, Any] = {
            "name": self.name,
            "start": self.start.model_dump(mode="json"),
            "set": self.config.measured_on,
            "pool": POOL,
            "share": self.trial.share,
            "supervised": settings(schedule(said)),
            "width": self.recipe.student.width,
            "proposals": self.recipe.student.proposals,
            "seed": self.seed,
        }
        if self.start.weights:
            config["weights"] = weights_digest(self.start.weights)
        inputs = (*((self.start.step,) if self.start.step else ()), POOL, f"data.{self.config.measured_on}")
        return Step(self.name, "evaluation.supervised:train", config, inputs, resumes=True)


def stage_of(config: CompareConfig, trial: Trial, begin: StartConfig) -> StageConfig:
    """A method's stage. ConfigError names what is wrong with its settings."""
    said = {
        **config.methods[trial.method],
        "name": NAME,
        "data": config.data,
        "start": begin.weights or (STUDENT if begin.step else trial.start),
        "backbone": trial.backbone,
        "image_size": begin.image_size,
        "share": trial.share,
        "steps": trial.steps,
        "batch": config.batch,
    }
    package, key = CHOSEN["stages"]
    place = f"compare.methods.{trial.method}"
    method = choose(str(said[key]), modules(package), f"{place}.{key}:")
    try:
        made: StageConfig = importlib.import_module(f"{package}.{method}").Config.model_validate(said)
    except ValidationError as error:
        raise ConfigError(f"{place}: {_told(error)}") from error
    return made


def schedule(said: Mapping[str, Any]) -> FitConfig:
    """The schedule of supervised training. ConfigError names what is wrong with it."""
    try:
        return FitConfig.model_validate(said)
    except ValidationError as error:
        raise ConfigError(f"compare.supervised: {_told(error)}") from error


def _told(error: ValidationError) -> str:
    lines = [f"{'.'.join(map(str, each['loc']))}: {each['msg']} (value {each['input']!r})" for each in error.errors()]
    return "; ".join(lines)


def stages_of(recipe: Recipe) -> dict[str, StageConfig]:
    """What the methods of a comparison do on every backbone they are crossed with, by what errors call it."""
    if recipe.compare is None:
        return {}
    found = {}
    for trial in recipe.compare.trials(recipe.student.backbone):
        if trial.method not in (NO_STAGE, SUPERVISED):
            begin = _Trial(recipe, recipe.compare, trial).start
            found[f"compare.methods.{trial.method} on {trial.backbone}"] = stage_of(recipe.compare, trial, begin)
    return found


def check_comparing(recipe: Recipe, spaces: Spaces) -> None:
    """Raise ConfigError for sets, probes or a schedule that are not there, or a set without labels to measure on."""
    config = recipe.compare
    if config is None:
        return
    for key, names in (("data", config.data), ("on", [config.measured_on])):
        for name in names:
            choose(name, spaces, f"compare.{key}:")
    check_how("compare", config)
    if not config.probes and not config.finetune:
        raise ConfigError("compare: neither probes nor finetune are asked for: nothing would be measured.")
    there = spaces[config.measured_on]
    if not there or (config.probes and "classification" not in there):
        raise ConfigError(
            f"compare.on is {config.measured_on!r}, which has labels for {', '.join(sorted(there)) or 'nothing'}: "
            f"{'probes need class labels' if config.probes else 'there is nothing to fine-tune on'}."
        )
    names = [trial.name for trial in config.trials(recipe.student.backbone)]
    again = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if again:
        raise ConfigError(f"compare: {again!r} is asked for twice: name every start, share and number of steps once.")
