"""Steps that measure: the student and its teachers, and backbones against each other. No torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from evaluation.corruptions import VERSION as CORRUPTIONS
from evaluation.schedules import SCHEDULES
from flows.plan.resolve import ResolvedRecipe, Spaces
from pipeline.data import sampling
from pipeline.errors import ConfigError, require_one_of
from pipeline.models.weights import weights_digest
from pipeline.recipe.evaluation import EvaluateConfig, MeasurementConfig, StartConfig
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import LabelCheck, Step, StepKind

PROBES = "evaluation.probes"


def measurement_needs(config: Mapping[str, Any]) -> list[Any]:
    """Return what a measurement asks of its set, as `LabelCheck.needs`."""
    return ["probes" in config, *(config[key] for key in ("set", "splits", "labels"))]


CHECK = LabelCheck(measurement_needs, "evaluation.label_subsets:label_requests")
EVALUATE = StepKind("evaluate", "evaluation.evaluate:evaluate", measures=True)
PROBE = StepKind("probe", "evaluation.probing:probe", measures=True, label_check=CHECK)
FINETUNE = StepKind(
    "finetune", "evaluation.finetuning:finetune", measures=True, incremental_keys=("labels", "seeds"), label_check=CHECK
)

MEASUREMENT_KEYS = ("set", "splits", "labels", "seeds", "seed", "corruptions", "trial")
"""Settings that probes and fine-tuning depend on alike; `trial` is of a comparison's rows alone."""


def plan_steps(resolved: ResolvedRecipe) -> Iterator[Step]:
    """Yield the evaluation of student and teachers, and a step for each backbone, set, and way of measuring."""
    recipe, config = resolved.recipe, resolved.recipe.evaluate
    settings = {**config.model_dump(mode="json", include={"splits", "sets"}), "seed": recipe.seed}
    inputs = ("student", *resolved.data_steps, *resolved.teacher_steps)
    yield Step("evaluate", EVALUATE, ("evaluate",), settings, inputs)
    common = {**measurement_settings(config, recipe), "splits": config.splits, "seed": recipe.seed}
    probed = probed_sets(config, resolved.spaces)
    for start in resolved.starts:
        for name in probed:
            settings = {**common, "set": name}
            yield measurement_step(f"probe.{start.name}.{name}", PROBE, ("evaluate",), start, settings)
        for name in config.finetune:
            settings = {**common, "set": name}
            yield measurement_step(f"finetune.{start.name}.{name}", FINETUNE, ("evaluate",), start, settings)


def measurement_settings(config: MeasurementConfig, recipe: Recipe) -> dict[str, Any]:
    """Return the settings that probes and fine-tuning have in common."""
    settings = config.model_dump(mode="json", include={"probes", "schedule", "labels", "seeds", "corruptions"})
    return {**settings, "width": recipe.student.width, "proposals": recipe.student.proposals}


def measurement_step(
    name: str, kind: StepKind, section: tuple[str, ...], start: StartConfig, settings: Mapping[str, Any]
) -> Step:
    """Return the step in which a backbone is probed, or fine-tuned from, on the set `settings["set"]`."""
    if kind.run == PROBE.run:
        keys: tuple[str, ...] = ("probes",)
        versions = {probe: importlib.import_module(f"{PROBES}.{probe}").VERSION for probe in settings["probes"]}
    else:
        keys = ("schedule", "width", "proposals")
        versions = {settings["schedule"]: SCHEDULES[settings["schedule"]].version}
    versions |= sampling.version(True) | ({"corruptions": CORRUPTIONS} if settings["corruptions"] else {})
    measured = {key: value for key, value in settings.items() if key in (*MEASUREMENT_KEYS, *keys)}
    config = {"name": name, **start_config(start), **measured, "versions": versions}
    return Step(name, kind, section, config, start_inputs(start, f"data.{settings['set']}"))


def start_config(start: StartConfig) -> dict[str, Any]:
    """Return a backbone to start from, for a step's configuration: other weights of the same name are another start."""
    digest = {"weights": weights_digest(start.weights)} if start.weights else {}
    return {"start": start.model_dump(mode="json"), **digest}


def start_inputs(start: StartConfig, *others: str) -> tuple[str, ...]:
    """Return the inputs of a step that starts from a backbone: the step that leaves it, if one does, and the others."""
    return (start.step, *others) if start.step else others


def probed_sets(config: EvaluateConfig, spaces: Spaces) -> list[str]:
    """Return the sets to probe on. ConfigError if one that is named has no class labels, or none has."""
    if not config.probes:
        return []
    classified = [name for name, tasks in spaces.items() if "classification" in tasks]
    if not classified:
        raise ConfigError(f"evaluate.probes is {config.probes}, but no set has class labels to probe with.")
    wanted = classified if config.probe_sets is None else config.probe_sets
    return [require_one_of(name, classified, "evaluate.probe_sets: set with class labels") for name in wanted]
