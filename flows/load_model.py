"""Load a trained model: a recipe's as it is now, the newest one of a root, or a file of weights. Nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.plan.run_plan import plan_unchecked
from pipeline.errors import DataError, require_one_of
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.runtime import RuntimeConfig
from pipeline.steps.artifact import Artifact, require
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.cache import cache_folder
from pipeline.storage.root import Root

if TYPE_CHECKING:
    from tasks.inference.model import TrainedModel

STUDENT, TEACHERS = "student", "teacher."
"""The student's step, and how those of teachers begin."""
WEIGHTS_SUFFIX = ".safetensors"


def load_model(name: str, root: str | Path, recipe: Recipe | None = None, **runtime: Any) -> TrainedModel:
    """Load `student`, a teacher or a file of weights; `runtime` replaces settings of the recipe's, or of the default.

    Raises as `find_model` does, and ConfigError if there is no such file.
    """
    settings = RuntimeConfig() if recipe is None else recipe.runtime
    if name.endswith(WEIGHTS_SUFFIX) or Path(name).is_file():
        from tasks.inference.opening import open_model_file  # noqa: PLC0415 - torch

        # what is measured on this machine is kept for the next time, and no root may be at hand
        return open_model_file(name, Runtime.of(settings, Root.of(cache_folder()), **runtime))
    opened = Root.of(root, settings.cache_gb)
    artifact = find_model(name, opened, recipe)
    from tasks.inference.opening import open_model  # noqa: PLC0415 - torch, only once there is a model

    return open_model(artifact, Runtime.of(settings, opened, **runtime))


def find_model(name: str, root: Root, recipe: Recipe | None = None) -> Artifact:
    """Return the artifact of `student` or of a teacher: the recipe's, or without a recipe the newest of the root.

    Raises ConfigError, with the names that there are, for an unknown name; DataError, with what to run, if the model
    is not made yet.
    """
    if recipe is None:
        return _newest(name, root)
    planned = {each.step.name: each.artifact for each in plan_unchecked(recipe, root).planned}
    step = _step_of(name, planned)
    return require(planned[step], step)


def _newest(name: str, root: Root) -> Artifact:
    workspace = Workspace(root)
    folders = [folder.name for folder in (root / "artifacts").folders()]
    made = {folder: artifact for folder in _models(folders).values() if (artifact := workspace.newest(folder))}
    if not made:
        raise DataError(f"{root}: holds no trained model; `must run` makes one, or name another root.")
    artifact = made[_step_of(name, made)]
    if not artifact.is_whole():
        raise DataError(f"{artifact}: some of its files are gone; `must run` with its recipe makes it again.")
    return artifact


def _step_of(name: str, steps: Iterable[str]) -> str:
    models = _models(steps)
    return models[require_one_of(name, models, "model")]


def _models(steps: Iterable[str]) -> dict[str, str]:
    """Return those of these steps that train a model, by the model's name."""
    return {step.removeprefix(TEACHERS): step for step in steps if step == STUDENT or step.startswith(TEACHERS)}
