"""Deployments: their forms, what they refuse, and the commands of docs/how-to/deployment.md."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.plan.selection import Selection
from tests.docs.pages import commands_of
from tests.flows.tiny import RECIPE, TRAIN_STEPS, environ_without_prefect, processes_of, query_prefect
from tests.waiting import wait_until, wait_until_gone

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
FLOWS = ["selftrain", "train_teacher", "label_pool", "train_student", "run_stage", "evaluate", "compare"]
COMPARED = "compare={one: {data: [world], methods: {simclr: {method: simclr}}, batch: 4}}"
Understand = Callable[[str, dict[str, Any]], tuple[Selection, dict[str, Any]]]
STEPS = ["data.world", "data.pool", "pool", "teacher.parts", "teacher.gabor", "label", "student", "evaluate"]
TASK_RUNS = """
    select t.name, t.state_name from task_run t join flow_run f on t.flow_run_id = f.id where f.name = '{}'
"""


def flow(name: str) -> Any:
    from flows import deployments  # noqa: PLC0415 - loads Prefect

    return getattr(deployments, name)


@pytest.mark.parametrize("name", FLOWS)
def test_form_is_flat_and_describes_each_parameter(name: str) -> None:
    from prefect.utilities.callables import parameter_schema  # noqa: PLC0415

    schema = parameter_schema(flow(name)).model_dump()
    fields = schema["properties"]
    assert fields.keys() >= {"recipe", "root", "overrides", "device", "workers"}
    assert schema["required"] == {"train_teacher": ["teacher"], "run_stage": ["stage"]}.get(name, [])
    assert schema["definitions"] == {}
    assert all(field["description"] for field in fields.values())
    assert flow(name).description
    devices = next(choice for choice in fields["device"]["anyOf"] if "enum" in choice)
    assert devices["enum"] == ["auto", "cpu", "cuda", "mps"]


def test_prefect_yaml_deploys_every_flow() -> None:
    deployed = yaml.safe_load((PROJECT / "prefect.yaml").read_text("utf-8"))["deployments"]
    assert [each["entrypoint"] for each in deployed] == [f"flows.deployments.{name}" for name in FLOWS]
    assert [each["name"] for each in deployed] == [name.replace("_", "-") for name in FLOWS]
    assert all(flow(name).name == each["tags"][0] == "must" for name, each in zip(FLOWS, deployed, strict=True))


@pytest.fixture
def common(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "tiny.yaml").write_text(RECIPE, "utf-8")
    return {"recipe": str(tmp_path / "tiny.yaml"), "root": str(tmp_path / "root")}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("selftrain", {"recipe": "nowhere.yaml"}, "nowhere.yaml: can't be read (No such file or directory)."),
        ("selftrain", {"overrides": ["student.epoch=3"]}, "Did you mean 'epochs'?"),
        ("selftrain", {"force": ["studen"]}, "Step 'studen' is unknown. Did you mean 'student'?"),
        ("selftrain", {"start": "labels"}, "Step 'labels' is unknown. Did you mean 'label'?"),
        ("train_teacher", {"teacher": "mask", "epochs": 3.0}, "Did you mean 'masks'? Known: gabor, masks."),
        ("train_teacher", {"teacher": "gabor", "steps": 3}, "teachers.gabor.steps: unknown key (value 3)."),
        ("run_stage", {"stage": "garments"}, "Stage 'garments' is unknown. Known: "),
        ("compare", {}, "has no section `compare`"),
        ("compare", {"comparison": "first", "overrides": [COMPARED]}, "Comparison 'first' is unknown. Known: one."),
        ("train_student", {"epochs": 3.0, "steps": 5}, "epochs (3.0) and steps (5) are both given"),
    ],
)
def test_flow_refuses_a_wrong_request_with_nothing_made(
    name: str, given: dict[str, Any], message: str, common: dict[str, Any]
) -> None:
    state = call_flow(name, {**common, **given})
    assert (state.type, state.name) == ("FAILED", "Refused")
    assert message in state.message
    assert "Traceback" not in state.message
    assert not Path(common["root"]).exists()


@pytest.fixture
def understand_request(common: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Understand:
    """Return a function that returns what a flow would run: (flow, parameters) -> (selection, recipe)."""
    from flows import deployments  # noqa: PLC0415

    def understand(name: str, given: dict[str, Any]) -> tuple[Selection, dict[str, Any]]:
        read = deployments._read_recipe
        monkeypatch.setattr(
            deployments, "_run", lambda asked, given: (asked.selection, read(asked, given).model_dump())
        )
        found: tuple[Selection, dict[str, Any]] = call_flow(name, {**common, **given})
        return found

    return understand


@pytest.mark.parametrize(
    ("name", "given", "changed", "selection"),
    [
        ("selftrain", {"force": ["label"]}, {}, Selection(force=("label",))),
        ("selftrain", {"start": "pool", "runner": "dask"}, {"runtime.runner": "dask"}, Selection(start="pool")),
        ("train_teacher", {"teacher": "masks"}, {"teachers.masks.steps": TRAIN_STEPS}, Selection("teacher.masks")),
        (
            "train_teacher",
            {"teacher": "masks", "epochs": 2.5, "force": True},
            {"teachers.masks.epochs": 2.5, "teachers.masks.steps": None, "student.steps": TRAIN_STEPS},
            Selection("teacher.masks", force=("teacher.masks",)),
        ),
        ("label_pool", {"batch": 7, "workers": 3}, {"labelling.batch": 7, "runtime.workers": 3}, Selection("label")),
        (
            "train_student",
            {"overrides": ["student.lr=1", "seed=5"], "lr": 0.5, "steps": 9},
            {"student.lr": 0.5, "seed": 5, "student.steps": 9, "student.epochs": None},
            Selection("student"),
        ),
        (
            "run_stage",
            {"stage": "first", "steps": 7, "overrides": ["stages=[{name: first, method: simclr, data: [pool]}]"]},
            {"stages.first.steps": 7, "stages.first.epochs": None, "stages.first.method": "simclr"},
            Selection("stage.first"),
        ),
        (
            "evaluate",
            {"splits": "val", "device": "mps"},
            {"evaluate.splits": "val", "runtime.device": "mps"},
            Selection("evaluate"),
        ),
        ("compare", {"comparison": "one", "overrides": [COMPARED]}, {"compare.one.batch": 4}, Selection("compare.one")),
        ("compare", {"overrides": [COMPARED]}, {"compare.one.seeds": 3}, Selection("compare")),
    ],
)
def test_flow_parameters_change_the_recipe_and_select_the_steps(
    name: str, given: dict[str, Any], changed: dict[str, Any], selection: Selection, understand_request: Understand
) -> None:
    chosen, recipe = understand_request(name, given)
    assert chosen == selection
    for path, value in changed.items():
        found: Any = recipe
        for key in path.split("."):
            found = {each["name"]: each for each in found} if isinstance(found, list) else found
            found = found[key]
        assert found == value, path


def call_flow(name: str, given: dict[str, Any]) -> Any:
    """Call a flow's function with its defaults filled in as Prefect does it."""
    from prefect.utilities.callables import get_call_parameters  # noqa: PLC0415

    function = flow(name).fn
    return function(**get_call_parameters(function, (), given))


@dataclasses.dataclass(frozen=True)
class TutorialCommand:
    """A command of the tutorial, the failure that the page announces, and what happened."""

    command: str
    fails: str
    code: int
    output: str


class Tutorial:
    """The commands of docs/how-to/deployment.md, run in order in a folder and on a recipe of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home = folder / "root", folder / "home"
        recipe = folder / "tiny.yaml"
        recipe.write_text(RECIPE.replace("masks", "parts"), "utf-8")
        self.instead = {
            "recipes/quickstart.yaml": str(recipe),
            "root=must-root": f"root={self.root}",
        }
        path = f"{BIN}:{os.environ['PATH']}"
        self.environ = environ_without_prefect() | {
            "MUST_HOME": str(self.home),
            "HOME": str(folder),
            "COLUMNS": "200",
            "PATH": path,
        }
        self.results: list[TutorialCommand] = []

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yield commands, each with the failure that the page announces, or ""."""
        for line in commands_of("docs/how-to/deployment.md"):
            command, _, fails = line.partition("    # fails: ")
            yield command, fails

    def run_command(self, command: str, fails: str) -> None:
        """Run one command of the page, with its paths replaced."""
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition(" ")[0].partition("=")
            self.environ[name] = value.replace("http://127.0.0.1:4200/api", self.status()["url"])
            return
        if "status" in command:
            self.wait_until_at_work()
        if "IDENTITY" in command:
            command = command.replace("IDENTITY", self.status()["runs"][0]["identity"])
        meant = command
        for here, there in self.instead.items():
            meant = meant.replace(here, there)
        done = subprocess.run(
            meant, shell=True, cwd=PROJECT, env=self.environ, capture_output=True, text=True, check=False
        )
        self.results.append(TutorialCommand(command, fails, done.returncode, done.stdout + done.stderr))
        if "cancel" in command:
            wait_until(lambda: not query_prefect(self.home, "select id from flow_run where state_type = 'CANCELLING'"))

    def status(self) -> dict[str, Any]:
        command = [str(BIN / "must"), "status", "--json"]
        output = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=True).stdout
        found: dict[str, Any] = json.loads(output)
        return found

    def wait_until_at_work(self) -> None:
        """Wait until the last run trains the student."""
        log = "artifacts/student/*/log/train.jsonl"
        wait_until(
            lambda: any(path.stat().st_mtime > self.began and path.stat().st_size for path in self.root.glob(log))
        )

    def run(self) -> None:
        """Run all commands."""
        for command, fails in self.commands():
            self.began = time.time()
            self.run_command(command, fails)

    def flow_runs(self) -> list[tuple[str, str, str, str]]:
        """Return (deployment, name, state, message) of every flow run, in order."""
        query = """
            select d.name, r.name, r.state_name, s.message from flow_run r join deployment d on r.deployment_id = d.id
            join flow_run_state s on r.state_id = s.id order by r.created
        """
        return [(flow, name, state, message) for flow, name, state, message in query_prefect(self.home, query)]

    def task_runs(self, flow_run: str) -> dict[str, str]:
        """Return the states of task runs by step."""
        return dict(query_prefect(self.home, TASK_RUNS.format(flow_run)))


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tutorial]:
    given = Tutorial(tmp_path_factory.mktemp("tutorial"))
    try:
        given.run()
        yield given
    finally:
        command = [str(BIN / "must"), "down", "--now"]
        subprocess.run(command, env=given.environ, capture_output=True, check=False)


@pytest.mark.slow
def test_tutorial_commands_end_as_the_page_says(tutorial: Tutorial) -> None:
    assert len(tutorial.results) == 9
    for each in tutorial.results:
        assert bool(each.code) == bool(each.fails), f"{each.command}: {each.code}\n{each.output}"
        assert each.fails in re.sub(r"\s+", " ", each.output), f"{each.command}: {each.output}"


@pytest.mark.slow
def test_deployed_selftrain_makes_everything_and_is_named_like_its_folder(tutorial: Tutorial) -> None:
    flow, name, state, message = tutorial.flow_runs()[0]
    assert (flow, state, message) == ("selftrain", "Completed", "8 steps made, 0 reused")
    assert (tutorial.root / "runs" / name / "report.html").exists()
    assert tutorial.task_runs(name) == dict.fromkeys(STEPS, "Completed")
    kinds = dict(query_prefect(tutorial.home, "select key, type from artifact where key is not null"))
    assert kinds == {"tiny-report": "markdown", "tiny-metrics": "table"}


@pytest.mark.slow
def test_deployed_train_student_reuses_what_exists(tutorial: Tutorial) -> None:
    flow, name, state, message = tutorial.flow_runs()[1]
    assert (flow, state, message) == ("train-student", "Completed", "1 steps made, 6 reused")
    assert tutorial.task_runs(name) == dict.fromkeys(STEPS[:-2], "Cached") | {"student": "Completed"}


@pytest.mark.slow
def test_deployed_flow_refused_makes_nothing_and_says_why(tutorial: Tutorial) -> None:
    runs = tutorial.flow_runs()
    [(flow, name, _, message)] = [run for run in runs if run[2] == "Refused"]
    assert (flow, message) == ("train-teacher", "Teacher 'part' is unknown. Did you mean 'parts'? Known: gabor, parts.")
    assert {folder.name for folder in (tutorial.root / "runs").iterdir()} == {run[1] for run in runs} - {name}
    assert not query_prefect(tutorial.home, "select message from log where message like '%Traceback%'")


@pytest.mark.slow
def test_deployed_flow_cancelled_saves_its_state_and_leaves_no_process(tutorial: Tutorial) -> None:
    _, name, state, _ = tutorial.flow_runs()[-1]
    assert state == "Cancelled"
    assert tutorial.task_runs(name) == dict.fromkeys(STEPS[:-2], "Cached") | {"student": "Cancelled"}
    assert list(tutorial.root.glob("artifacts/student/*/work/state.safetensors"))
    [status] = [each.output for each in tutorial.results if each.command.endswith("must status")]
    assert f"train-student {name}: student, since " in re.sub(r"\s+", " ", status)


@pytest.mark.slow
def test_tutorial_leaves_nothing_running(tutorial: Tutorial) -> None:
    wait_until_gone(*processes_of(tutorial.home))
    assert tutorial.results[-1].output == "Ended: worker, server.\n"
