"""The flows that Prefect deploys (`prefect.yaml`): a run of a recipe up to one of its steps, as `must run` does it.

What is there already is reused, so each makes what is missing for its step and no more. A request that can't be met
ends as `Refused`, with nothing made.
"""

# No `from __future__ import annotations`: Prefect reads the types for its forms, and resolves no names in them.

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import prefect.runtime.flow_run
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun, FailedRun
from pydantic import Field

from flows.orchestration.task_runs import TaskRuns
from flows.plan.selection import Selection
from flows.run.execution import execute_plan
from flows.run.process_setup import set_up_process
from flows.run.run import Run, plan_run
from flows.run.step_runner import Subprocess
from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.reader import read_recipe
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.runtime import Device
from pipeline.steps.artifact import Artifact
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root

# What every form asks for: the type has the bounds, the default the words.
Text = Annotated[str, Field(min_length=1)]
RECIPE = Field(
    "recipes/quickstart.yaml",
    description="The YAML file that describes the run. A relative path begins in the folder of prefect.yaml, on the "
    "worker's machine.",
)
ROOT = Field(
    "must-root",
    description="Folder, or URL such as s3://bucket/root, for artifacts and runs. A relative path begins where the "
    "recipe's does.",
)
OVERRIDES: list[str] = Field([], description="Keys of the recipe to change for this run, such as student.epochs=3.")
ANEW = Field(False, description="Make it again though it is there.")
DEVICE = Field(None, description="Where networks run; else as the recipe says.")
Threads = Annotated[int | None, Field(ge=0)]
WORKERS = Field(None, description="Threads for decoding and encoding, 0 for one per core; else as the recipe says.")
Runner = Literal["threads", "process", "ray", "dask"] | None
RUNNER = Field(
    None, description="What labels: one process, or many of this machine or a cluster; else as the recipe says."
)
START = Field(None, description="Make this step, such as label, and all behind it again.")
FORCE: list[str] = Field([], description="Make these steps again, and what is behind them if their results differ.")
TEACHER = Field(description="Name of the teacher, as under teachers in the recipe.")
STAGE = Field(description="Name of the stage, as under stages in the recipe.")
COMPARISON = Field(None, description="Name of the comparison, as under compare in the recipe; else all of them.")
IMAGES = Field(None, description="Images that go through a teacher at once; else as the recipe says.")
SPLITS = Field(None, description="Held-out split to prefer; else as the recipe says.")
# A schedule to train with.
Epochs = Annotated[float | None, Field(gt=0)]
EPOCHS = Field(None, description="Passes over the images; else as the recipe says.")
Count = Annotated[int | None, Field(ge=1)]
STEPS = Field(None, description="Optimiser steps, instead of epochs.")
BATCH = Field(None, description="Images per optimiser step; else as the recipe says.")
Rate = Annotated[float | None, Field(gt=0)]
LR = Field(None, description="Highest learning rate; else as the recipe says.")


@flow(name="selftrain", persist_result=False)
def selftrain(
    recipe: Text = RECIPE,
    root: Text = ROOT,
    overrides: list[str] = OVERRIDES,
    start: Text | None = START,
    force: list[str] = FORCE,
    runner: Runner = RUNNER,
    device: Device | None = DEVICE,
    workers: Threads = WORKERS,
) -> State[Any]:
    """The whole of a recipe: read the sets, train the teachers, label the pool, train the student, evaluate."""
    machine = _given("runtime", runner=runner, device=device, workers=workers)
    selection = Selection(start=start, force=tuple(force))
    return _carry_out(selection, lambda: read_recipe(Path(recipe), [*overrides, *machine]), root)


@flow(name="train-teacher", persist_result=False)
def train_teacher(
    teacher: Text = TEACHER,
    recipe: Text = RECIPE,
    root: Text = ROOT,
    overrides: list[str] = OVERRIDES,
    epochs: Epochs = EPOCHS,
    steps: Count = STEPS,
    batch: Count = BATCH,
    lr: Rate = LR,
    force: bool = ANEW,
    device: Device | None = DEVICE,
    workers: Threads = WORKERS,
) -> State[Any]:
    """Train one teacher of a recipe, after reading the set that it learns from."""

    def read() -> Recipe:
        require_one_of(teacher, read_recipe(Path(recipe), overrides).teachers, "Teacher")
        schedule = _schedule(f"teachers.{teacher}", epochs=epochs, steps=steps, batch=batch, lr=lr)
        machine = _given("runtime", device=device, workers=workers)
        return read_recipe(Path(recipe), [*overrides, *schedule, *machine])

    return _carry_out(_up_to(f"teacher.{teacher}", force), read, root)


@flow(name="label-pool", persist_result=False)
def label_pool(
    recipe: Text = RECIPE,
    root: Text = ROOT,
    overrides: list[str] = OVERRIDES,
    batch: Count = IMAGES,
    force: bool = ANEW,
    runner: Runner = RUNNER,
    device: Device | None = DEVICE,
    workers: Threads = WORKERS,
) -> State[Any]:
    """Let all teachers of a recipe label its pool, after training those that are not there yet."""
    changes = [*_given("labelling", batch=batch), *_given("runtime", runner=runner, device=device, workers=workers)]
    return _carry_out(_up_to("label", force), lambda: read_recipe(Path(recipe), [*overrides, *changes]), root)


@flow(name="train-student", persist_result=False)
def train_student(
    recipe: Text = RECIPE,
    root: Text = ROOT,
    overrides: list[str] = OVERRIDES,
    epochs: Epochs = EPOCHS,
    steps: Count = STEPS,
    batch: Count = BATCH,
    lr: Rate = LR,
    force: bool = ANEW,
    device: Device | None = DEVICE,
    workers: Threads = WORKERS,
) -> State[Any]:
    """Train the student of a recipe on all labels, after making those that are not there yet."""
    changes = [
        *_schedule("student", epochs=epochs, steps=steps, batch=batch, lr=lr),
        *_given("runtime", device=device, workers=workers),
    ]
    return _carry_out(_up_to("student", force), lambda: read_recipe(Path(recipe), [*overrides, *changes]), root)


@flow(name="run-stage", persist_result=False)
def run_stage(
    stage: Text = STAGE,
    recipe: Text = RECIPE,
    root: Text = ROOT,
    overrides: list[str] = OVERRIDES,
    epochs: Epochs = EPOCHS,
    steps: Count = STEPS,
    batch: Count = BATCH,
    lr: Rate = LR,
    force: bool = ANEW,
    device: Device | None = DEVICE,
    workers: Threads = WORKERS,
) -> State[Any]:
    """Run one self-supervised stage of a recipe, after making what it starts from."""

    def read() -> Recipe:
        require_one_of(stage, [each.name for each in read_recipe(Path(recipe), overrides).stages], "Stage")
        schedule = _schedule(f"stages.{stage}", epochs=epochs, steps=steps, batch=batch, lr=lr)
        machine = _given("runtime", device=device, workers=workers)
        return read_recipe(Path(recipe), [*overrides, *schedule, *machine])

    return _carry_out(_up_to(f"stage.{stage}", force), read, root)


@flow(name="evaluate", persist_result=False)
def evaluate(
    recipe: Text = RECIPE,
    root: Text = ROOT,
    overrides: list[str] = OVERRIDES,
    splits: Literal["test", "val"] | None = SPLITS,
    force: bool = ANEW,
    device: Device | None = DEVICE,
    workers: Threads = WORKERS,
) -> State[Any]:
    """Measure the student, its teachers and a trivial baseline of a recipe on held-out images, and write the report."""
    changes = [*_given("evaluate", splits=splits), *_given("runtime", device=device, workers=workers)]
    return _carry_out(_up_to("evaluate", force), lambda: read_recipe(Path(recipe), [*overrides, *changes]), root)


@flow(name="compare", persist_result=False)
def compare(
    recipe: Text = RECIPE,
    comparison: Text | None = COMPARISON,
    root: Text = ROOT,
    overrides: list[str] = OVERRIDES,
    device: Device | None = DEVICE,
    workers: Threads = WORKERS,
) -> State[Any]:
    """Compare self-supervised methods as a recipe says, after making what they start from, and write the report."""

    def read() -> Recipe:
        found = read_recipe(Path(recipe), [*overrides, *_given("runtime", device=device, workers=workers)])
        if not found.compare:
            raise ConfigError(f"{recipe}: has no section `compare`; docs/how-to/compare.md shows one.")
        if comparison:
            require_one_of(comparison, found.compare, "Comparison")
        return found

    return _carry_out(Selection(f"{COMPARE}.{comparison}" if comparison else COMPARE), read, root)


def _up_to(step: str, force: bool) -> Selection:
    return Selection(step, force=(step,) if force else ())


def _carry_out(selection: Selection, read: Callable[[], Recipe], root: str) -> State[Any]:
    """Run what is selected of the recipe that `read` gives, its steps as task runs of the current flow run."""
    set_up_process()
    logging.getLogger("prefect.flow_runs").addFilter(_is_news)
    steps = TaskRuns()

    def carry(run: Run, apart: Subprocess) -> Mapping[str, Artifact]:
        _name_after(run)
        return steps.carry_out(run, apart)

    def work() -> None:
        recipe = read()
        runtime = Runtime.of(recipe.runtime, Root.of(root, recipe.runtime.cache_gb))
        execute_plan(recipe, plan_run(recipe, runtime.root, selection), runtime, carry)

    return steps.conclude(work)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of Prefect's log says more than the state of the run does: its own traceback does not."""
    return not (record.exc_info and isinstance(record.exc_info[1], CancelledRun | FailedRun))


def _name_after(run: Run) -> None:
    """Give the current flow run the name of the run's folder: the page and the disk tell of the same thing."""
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:  # a name is not worth a run
        client.update_flow_run(prefect.runtime.flow_run.id, name=run.folder.name)


def _given(section: str, **values: Any) -> Iterator[str]:
    """Overrides for the values that were given."""
    yield from (f"{section}.{key}={value}" for key, value in values.items() if value is not None)


def _schedule(section: str, **values: Any) -> Iterator[str]:
    """Overrides for a schedule: steps replace the recipe's epochs, and epochs its steps."""
    yield from _given(section, **values)
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if values[key] is not None and values[other] is None:
            yield f"{section}.{other}=null"
