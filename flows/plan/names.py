"""Check the names in a recipe: of models, tasks, probes, schedules and starts. Reads no file, and loads no torch.

The first check after the recipe itself: a typo is told at once, and not once data has been looked through.
"""

from __future__ import annotations

from collections.abc import Sequence

import tasks
from evaluation.label_subsets import PROBES
from evaluation.schedules import SCHEDULES
from evaluation.trackers import check_tracker_names
from flows.plan.prompt_checks import check_prompters
from pipeline.errors import error_context, require_one_of
from pipeline.models.timm_names import check_timm_name
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.evaluation import MeasurementConfig, start_of
from pipeline.recipe.plugins import CHOSEN, modules
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.stage import StageConfig


def require_known_names(recipe: Recipe) -> None:
    """Raise ConfigError, beginning with the place, for a name in a recipe that nothing has."""
    check_tracker_names(recipe.runtime.trackers or ())
    for name, teacher in recipe.teachers.items():
        require_one_of(teacher.task, tasks.names(), f"teachers.{name}.task")
        _check_models(f"teachers.{name}", teacher.model_names())
    check_prompters(recipe)
    _check_models("student", recipe.student.model_names())
    for stage in recipe.stages:
        _check_models(f"stages.{stage.name}", _own_backbone(stage))
    _check_measuring("evaluate", recipe.evaluate, recipe.evaluate.starts or (), recipe)
    package, key = CHOSEN["stages"]
    for name, config in recipe.compare.items():
        place = f"{COMPARE}.{name}"
        for setting, sets in (("data", config.data), ("set", [config.measured_on])):
            for each in sets:
                require_one_of(each, recipe.data, f"{place}.{setting}:")
        for method, settings in config.methods.items():
            require_one_of(str(settings[key]), modules(package), f"{place}.methods.{method}.{key}:")
        _check_models(f"{place}.backbones", config.backbones)
        _check_measuring(place, config, config.starts, recipe)


def _check_models(place: str, names: Sequence[str]) -> None:
    with error_context(place):
        for name in names:
            check_timm_name(name)


def _own_backbone(stage: StageConfig) -> Sequence[str]:
    """Return the backbone that a stage itself names; its `model_names` needs one with all filled in."""
    return [] if stage.backbone is None else [stage.backbone]


def _check_measuring(place: str, config: MeasurementConfig, starts: Sequence[str], recipe: Recipe) -> None:
    """Raise ConfigError for a probe, a schedule or a start that is not there."""
    for name in config.probes:
        require_one_of(name, modules(PROBES), f"{place}.probes:")
    require_one_of(config.schedule, SCHEDULES, f"{place}.schedule:")
    steps = [*(f"stage.{stage.name}" for stage in recipe.stages), *(f"teacher.{name}" for name in recipe.teachers)]
    with error_context(f"{place}.starts"):
        for start in starts:
            start_of(start, steps, recipe.student.backbone, recipe.student.image_size)
