"""The flows that Prefect deploys (`prefect.yaml`): each runs a recipe up to some of its steps, as `must run --to` does.

Each flow makes what is missing for its steps, reuses the rest, and makes nothing else. A request that can't be met ends
in the state `Refused`, with nothing made.
"""

# No `from __future__ import annotations`: Prefect reads the types of parameters, and resolves no names in them.

import contextlib
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import prefect.runtime.flow_run
from prefect import Flow, State, flow
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun, FailedRun
from pydantic import Field

from flows.orchestration.task_runs import TaskRuns
from flows.plan.run_plan import plan_run
from flows.plan.selection import Selection
from flows.run.execution import execute_plan
from flows.run.process_setup import set_up_process
from flows.run.run import Run
from flows.run.step_runner import Subprocess
from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.reader import read_recipe
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.runtime import Device
from pipeline.steps.artifact import Artifact
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root

FLOW = "must"
"""The name of all flows, which Prefect puts before a deployment's own: `must/train-teacher`."""
Values = Mapping[str, Any]
"""The values of a form's parameters by name."""
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int | None, Field(ge=1)]
Positive = Annotated[float | None, Field(gt=0)]
Threads = Annotated[int | None, Field(ge=0)]
Runner = Literal["threads", "process", "ray", "dask"] | None


def _parameter(name: str, type_: Any, description: str, default: Any = None) -> inspect.Parameter:
    """Return a parameter of a form. Prefect shows its description, and checks values against its type.

    It is given by name only: Prefect passes all others by position, which a flow that takes `**values` refuses.
    """
    field = Field(default, description=description)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field, annotation=type_)


RECIPE = _parameter(
    "recipe",
    Text,
    "The YAML file that describes the run. A relative path begins in the folder of prefect.yaml, on the "
    "worker's machine.",
    "recipes/quickstart.yaml",
)
ROOT = _parameter(
    "root",
    Text,
    "Folder, or URL such as s3://bucket/root, for artifacts and runs. A relative path begins where the recipe's does.",
    "must-root",
)
OVERRIDES = _parameter(
    "overrides", list[str], "Keys of the recipe to change for this run, such as student.epochs=3.", []
)
COMMON = (RECIPE, ROOT, OVERRIDES)
START = _parameter("start", Text | None, "Make this step, such as label or teacher.street, and all behind it again.")
FORCE_STEPS = _parameter(
    "force", list[str], "Make these steps, such as student, again, and what is behind them if their results differ.", []
)
FORCE = _parameter("force", bool, "Make it again though it is there.", False)
TEACHER = _parameter("teacher", Text, "Name of the teacher, as under teachers in the recipe, such as street.", ...)
STAGE = _parameter("stage", Text, "Name of the stage, as under stages in the recipe, such as clothing.", ...)
COMPARISON = _parameter(
    "comparison",
    Text | None,
    "Name of the comparison, as under compare in the recipe, such as small; else all of them.",
)
SCHEDULE = (
    _parameter("epochs", Positive, "Passes over the images, such as 10; else as the recipe says."),
    _parameter("steps", Count, "Optimiser steps, such as 2000, instead of epochs."),
    _parameter("batch", Count, "Images per optimiser step, such as 32; else as the recipe says."),
    _parameter("lr", Positive, "Highest learning rate, such as 0.001; else as the recipe says."),
)
LABEL_BATCH = _parameter("batch", Count, "Images that go through a teacher at once; else as the recipe says.")
SPLITS = _parameter("splits", Literal["test", "val"] | None, "Held-out split to prefer; else as the recipe says.")
RUNNER = _parameter(
    "runner", Runner, "What labels: one process, or many of this machine or a cluster; else as the recipe says."
)
MACHINE = (
    _parameter("device", Device | None, "Where networks run; else as the recipe says."),
    _parameter("workers", Threads, "Threads for decoding and encoding, 0 for one per core; else as the recipe says."),
)
SECTION_KEYS, RUNTIME_KEYS = ("epochs", "steps", "batch", "lr", "splits"), ("runner", "device", "workers")
"""Parameters that override keys of the recipe: in the section of the step, and in `runtime`."""


@dataclasses.dataclass(frozen=True)
class Request:
    """The steps that a form asks for, and where in the recipe its values go."""

    selection: Selection
    section: str = ""
    """The section of the recipe that SECTION_KEYS override, such as `teachers.things`."""
    check: Callable[[Recipe], object] | None = None
    """Raises ConfigError if the recipe lacks what the form names."""


def _deploy(*parameters: inspect.Parameter) -> Callable[[Callable[[Values], Request]], Flow[..., State[Any]]]:
    """Make a flow with these parameters of a function that turns their values into a request.

    Its deployment is named after the function, in `prefect.yaml`, and it is described by its docstring.
    """

    def make(request_for: Callable[[Values], Request]) -> Flow[..., State[Any]]:
        @functools.wraps(request_for)
        def body(**values: Any) -> State[Any]:
            return _run(request_for(values), values)

        vars(body)["__signature__"] = inspect.Signature(parameters)  # Prefect reads the form off it
        return flow(name=FLOW, persist_result=False)(body)

    return make


def _up_to(step: str, values: Values) -> Selection:
    return Selection(step, force=(step,) if values["force"] else ())


@_deploy(*COMMON, START, FORCE_STEPS, RUNNER, *MACHINE)
def selftrain(values: Values) -> Request:
    """Run a whole recipe: read the sets, train the teachers, label the pool, train the student, evaluate."""
    return Request(Selection(start=values["start"], force=tuple(values["force"])))


@_deploy(TEACHER, *COMMON, *SCHEDULE, FORCE, *MACHINE)
def train_teacher(values: Values) -> Request:
    """Train one teacher of a recipe, after reading the set that it learns from."""
    name = values["teacher"]
    return Request(
        _up_to(f"teacher.{name}", values),
        f"teachers.{name}",
        lambda recipe: require_one_of(name, recipe.teachers, "Teacher"),
    )


@_deploy(*COMMON, LABEL_BATCH, FORCE, RUNNER, *MACHINE)
def label_pool(values: Values) -> Request:
    """Let all teachers of a recipe label its pool, after training those that are not there yet."""
    return Request(_up_to("label", values), "labelling")


@_deploy(*COMMON, *SCHEDULE, FORCE, *MACHINE)
def train_student(values: Values) -> Request:
    """Train the student of a recipe on all labels, after making those that are not there yet."""
    return Request(_up_to("student", values), "student")


@_deploy(STAGE, *COMMON, *SCHEDULE, FORCE, *MACHINE)
def run_stage(values: Values) -> Request:
    """Run one self-supervised stage of a recipe, after making what it starts from."""
    name = values["stage"]
    return Request(
        _up_to(f"stage.{name}", values),
        f"stages.{name}",
        lambda recipe: require_one_of(name, [stage.name for stage in recipe.stages], "Stage"),
    )


@_deploy(*COMMON, SPLITS, FORCE, *MACHINE)
def evaluate(values: Values) -> Request:
    """Make all measurements of a recipe (of student and teachers, by probes, by fine-tuning), and write the report."""
    return Request(_up_to("evaluate", values), "evaluate")


@_deploy(RECIPE, COMPARISON, ROOT, OVERRIDES, *MACHINE)
def compare(values: Values) -> Request:
    """Compare self-supervised methods as a recipe says, after making what they start from, and write the report."""
    name = values["comparison"]

    def check(recipe: Recipe) -> None:
        if not recipe.compare:
            raise ConfigError(f"{values['recipe']}: has no section `compare`; docs/how-to/compare.md shows one.")
        if name:
            require_one_of(name, recipe.compare, "Comparison")

    return Request(Selection(f"{COMPARE}.{name}" if name else COMPARE), check=check)


def _read_recipe(request: Request, values: Values) -> Recipe:
    """Read the recipe that a form names, with its overrides. ConfigError if it lacks what the form names."""
    path, overrides = Path(values["recipe"]), values["overrides"]
    if request.check:
        request.check(read_recipe(path, overrides))  # first: overrides of a section that is missing raise a worse error
    return read_recipe(path, [*overrides, *_overrides(request.section, values)])


def _overrides(section: str, values: Values) -> Iterator[str]:
    """Yield overrides for the values that are given. Steps replace the recipe's epochs, and epochs its steps."""
    given = {key: value for key, value in values.items() if value is not None}
    for place, keys in ((section, SECTION_KEYS), ("runtime", RUNTIME_KEYS)):
        yield from (f"{place}.{key}={given[key]}" for key in keys if key in given)
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if key in given and other not in given:
            yield f"{section}.{other}=null"


def _run(request: Request, values: Values) -> State[Any]:
    """Run what a form asks for, its steps as task runs of the current flow run."""
    set_up_process()
    logging.getLogger("prefect.flow_runs").addFilter(_is_news)
    task_runs = TaskRuns()

    def run_steps(run: Run, subprocess: Subprocess) -> Mapping[str, Artifact]:
        _name_flow_run(run.folder.name)
        return task_runs.run_steps(run, subprocess)

    def body() -> None:
        recipe = _read_recipe(request, values)
        runtime = Runtime.of(recipe.runtime, Root.of(values["root"], recipe.runtime.cache_gb))
        execute_plan(recipe, plan_run(recipe, runtime.root, request.selection), runtime, run_steps)

    return task_runs.final_state(body)


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for the traceback that Prefect logs of a cancelled or failed run: its state says it already."""
    return not (record.exc_info and isinstance(record.exc_info[1], CancelledRun | FailedRun))


def _name_flow_run(name: str) -> None:
    """Name the current flow run like the run's folder, so that Prefect's pages and the disk agree."""
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:  # a name is not worth a run
        client.update_flow_run(prefect.runtime.flow_run.id, name=name)
