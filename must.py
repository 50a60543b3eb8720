"""The Python API: write a recipe, plan and run it, or load a trained model.

import must
outcome = must.run("recipes/quickstart.yaml", root="must-root", overrides=["student.epochs=3"])
outcome.metrics
model = must.load("student", root="must-root")
model.predict("street.jpg")["things"].describe()
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

PACKAGES = ("browser", "evaluation", "flows", "ingest", "pipeline", "selfsup", "student", "tasks", "teachers")
"""The packages of this project, whose names a user's own files may have."""


def _check_nothing_hidden() -> None:
    """Raise ImportError if Python would take a user's file for one of our packages: that fails later, as a riddle."""
    here = Path(__file__).resolve().parent
    for name in PACKAGES:
        found = _origin(name)
        if found is not None and here not in found.parents:
            raise ImportError(
                f"{found} hides the package {name!r} of must, because Python looks in its folder first. Rename it, or "
                "keep its folder off Python's path: start Python in another folder, or a script with `python -P`. The "
                "command `must` is not affected.",
                name=name,
            )


def _origin(name: str) -> Path | None:
    """Return the file or folder that `import name` reads, None if there is none."""
    module = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if module is None else module.__spec__
    origin = spec.origin if spec else getattr(module, "__file__", None)
    if origin is None and spec and spec.submodule_search_locations:  # a folder without `__init__.py`
        origin = next(iter(spec.submodule_search_locations))
    return Path(origin).resolve() if origin else None


_check_nothing_hidden()

from pipeline.storage import DEFAULT_ROOT  # noqa: E402 - only if it is ours

if TYPE_CHECKING:
    from flows.plan.plan import Planned
    from flows.plan.selection import Selection
    from flows.run.run import Outcome
    from pipeline.recipe.recipe import Recipe
    from tasks.inference.model import TrainedModel

# Slow imports are in the functions that need them, so that planning loads no torch, unless a recipe has stages.
# ruff: noqa: PLC0415

__version__ = "0.1.0"


def init(folders: Sequence[str | Path], to: str | Path = "recipe.yaml") -> list[str]:
    """Write a commented recipe for folders of images, from what they contain, and return how each of them is read.

        must.init(["photos", "labelled/street"], to="mine.yaml")

    Raises ConfigError if the file exists, no folder is given or two have the same name, DataError if one can't be used.
    """
    from ingest.init import write_recipe

    return write_recipe([Path(folder) for folder in folders], Path(to))


def run(
    recipe: str | Path | Recipe,
    root: str | Path = DEFAULT_ROOT,
    overrides: list[str] | None = None,
    steps: Selection | None = None,
    **runtime: Any,
) -> Outcome:
    """Run a recipe, or a selection of its steps (`flows.plan.selection.Selection`), and return the outcome.

    `recipe` is a file, or what `pipeline.recipe.reader.read_recipe` returns, which takes overrides itself.
    `root` is a folder's path or a URL.
    `runtime` may hold `progress` and `stop` of `pipeline.steps.runtime.Runtime`.

    Raises ConfigError, DataError, Shortage, Stopped or Interrupted of `pipeline.errors`, or MustError itself if Prefect
    fails.
    """
    from flows.execute import execute_recipe
    from flows.plan.selection import WHOLE_RECIPE
    from flows.run.process_setup import set_up_process
    from pipeline.recipe.reader import read_recipe
    from pipeline.recipe.recipe import Recipe as Parsed
    from pipeline.steps.runtime import Runtime
    from pipeline.storage.root import Root

    set_up_process()
    parsed = recipe if isinstance(recipe, Parsed) else read_recipe(Path(recipe), overrides or ())
    opened = Root.of(root, parsed.runtime.cache_gb)
    return execute_recipe(parsed, Runtime.of(parsed.runtime, opened, **runtime), steps or WHOLE_RECIPE)


def plan(
    recipe: str | Path,
    root: str | Path = DEFAULT_ROOT,
    overrides: list[str] | None = None,
    steps: Selection | None = None,
) -> list[Planned]:
    """Return a recipe's steps, each with the artifact that a run would reuse, or why the step would run."""
    from flows.plan.run_plan import plan_run
    from flows.plan.selection import WHOLE_RECIPE
    from pipeline.recipe.reader import read_recipe
    from pipeline.storage.root import Root

    parsed = read_recipe(Path(recipe), overrides or ())
    return plan_run(parsed, Root.of(root, parsed.runtime.cache_gb), steps or WHOLE_RECIPE).planned


def load(
    model: str = "student",
    recipe: str | Path | None = None,
    root: str | Path = DEFAULT_ROOT,
    overrides: list[str] | None = None,
    **runtime: Any,
) -> TrainedModel:
    """Load a trained model, to predict labels and vectors of any images. Nothing is trained.

    `model`: `student`, a teacher's name, or a file of weights that was trained here, with its `model.json` beside it.
    `recipe`: take the model that a run of this recipe would reuse; by default the newest one in the root.
    `runtime` may hold `device` ("cpu", "cuda", "mps"), `precision` ("32", "bf16") and `workers`.

        model = must.load("student", root="must-root", device="cpu")
        labels = model.predict("street.jpg")
        labels["things"].value["boxes"]  # float32 (N, 4), pixels
        labels["things"].draw().save("drawn.jpg")
        model.embed(["a.jpg", "b.jpg"])  # float32 (2, D)

    Raises ConfigError if there is no model of this name or no such file; DataError, with what to run, if it is not made
    yet, or if it is damaged.
    """
    from flows.load_model import load_model
    from flows.run.process_setup import set_up_process
    from pipeline.recipe.reader import read_recipe

    set_up_process()
    parsed = None if recipe is None else read_recipe(Path(recipe), overrides or ())
    return load_model(str(model), root, parsed, **runtime)
