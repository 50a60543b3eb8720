"""Runs with Prefect: the same artifacts, everything recorded, nothing called or left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import must
from flows.run.run import Outcome
from pipeline.errors import DataError
from pipeline.storage.root import Root
from tests.flows.tiny import STEPS, THREADS, digests, events, logged, prefect_says, undecided, within

Start = Callable[..., BaseProcess]
GoesOn = Callable[[Path], Outcome]
MUST = Path(sys.executable).with_name("must")

GUARD = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        with open(os.environ["CALLS"], "a") as file:
            print(os.getpid(), host[0] if isinstance(host, tuple) else host, file=file)

sys.addaudithook(note)
"""
"""A sitecustomize that takes down whom every Python process below speaks to."""

TASK_RUNS = """
    select r.name, r.state_name, s.message, r.task_inputs, f.name
    from task_run r join task_run_state s on r.state_id = s.id join flow_run f on r.flow_run_id = f.id
"""
FLOW_RUNS = "select r.name, r.state_name, s.message from flow_run r join flow_run_state s on r.state_id = s.id"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A run by the command, as a user gives it."""

    root: Path
    home: Path
    done: subprocess.CompletedProcess[str]
    calls: list[tuple[int, str]]
    """(process, host) of every connection of the command and the server."""


@pytest.fixture(scope="module")
def shown(whole: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("shown")
    root, home = folder / "root", folder / "home"
    home.mkdir()
    shutil.copytree(whole / "machine", root / "machine")
    (folder / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    environ = undecided() | {"HOME": str(home), "PYTHONPATH": str(folder), "CALLS": str(folder / "calls")}
    command = [str(MUST), "run", str(recipe), "--root", str(root), *THREADS]
    done = subprocess.run(command, env=environ, cwd=home, capture_output=True, text=True, check=False)
    lines = (folder / "calls").read_text("utf-8").splitlines() if (folder / "calls").exists() else []
    calls = [(int(process), host) for process, host in (line.split(" ", 1) for line in lines)]
    return Shown(root, home, done, calls)


def test_it_comes_to_the_artifacts_of_a_run_without_prefect(shown: Shown, whole: Path) -> None:
    assert shown.done.returncode == 0, shown.done.stderr
    assert digests(shown.root) == digests(whole)
    steps = [(event["event"], event.get("step")) for event in events(shown.root)]
    assert steps == [(event["event"], event.get("step")) for event in events(whole)]


def test_every_step_is_recorded_as_a_task_run_behind_its_inputs(shown: Shown) -> None:
    runs = prefect_says(shown.root, TASK_RUNS)
    assert sorted(name for name, *_ in runs) == sorted(STEPS)
    assert {state for _, state, *_ in runs} == {"Completed"}
    assert all(message.startswith("made: ") for _, _, message, *_ in runs)
    behind = {name: len(json.loads(inputs).get("wait_for", [])) for name, _, _, inputs, _ in runs}
    plan = json.loads(next((shown.root / "runs").glob("*/plan.json")).read_text("utf-8"))
    assert [row["step"] for row in plan] == STEPS
    assert behind == {step.name: len(step.inputs) for step in (each.step for each in planned(shown))}


def planned(shown: Shown) -> list[Any]:
    return must.plan(next((shown.root / "runs").iterdir()) / "recipe.yaml", shown.root)


def test_the_flow_run_is_named_after_the_run_and_complete(shown: Shown) -> None:
    folder = next((shown.root / "runs").iterdir())
    assert prefect_says(shown.root, FLOW_RUNS) == [(folder.name, "Completed", "8 steps made, 0 reused")]
    assert prefect_says(shown.root, "select name from flow") == [("selftrain",)]


def test_the_metrics_are_a_table_in_prefect(shown: Shown) -> None:
    [(kind, data)] = prefect_says(shown.root, "select type, data from artifact where key = 'tiny-metrics'")
    assert kind == "table"
    rows = json.loads(json.loads(data))
    records = json.loads(next((shown.root / "runs").glob("*/metrics.json")).read_text("utf-8"))
    assert [row["value"] for row in rows] == pytest.approx([record["value"] for record in records], rel=1e-3)
    assert {"student", "teacher:masks"} <= {row["model"] for row in rows}


def test_the_report_is_a_page_in_prefect_with_pictures_of_labels(shown: Shown) -> None:
    [(data,)] = prefect_says(shown.root, "select data from artifact where key = 'tiny-report'")
    text = json.loads(data)
    folder = next((shown.root / "runs").iterdir())
    assert str(folder / "report.html") in text
    assert text.count("(data:image/jpeg;base64,") == 4 * 3
    assert {line.split(" | ")[1] for line in text.split("## Steps")[1].splitlines() if line.startswith("| `")} == {
        "made"
    }


def test_what_the_report_warns_of_is_in_the_steps_logs(shown: Shown) -> None:
    said = "select r.name, l.message from log l join task_run r on l.task_run_id = r.id where l.level = 30"
    warned = prefect_says(shown.root, said)
    assert {step for step, _ in warned} >= {"student", "evaluate"}
    assert any(step == "student" and message.startswith("Kept labels: masks: ") for step, message in warned)


def test_the_terminal_shows_the_run_and_nothing_of_prefect(shown: Shown) -> None:
    assert shown.done.stderr == ""
    assert "prefect" not in shown.done.stdout.lower()
    for step in STEPS:
        assert f"{step} 100% made in" in shown.done.stdout
    assert "Report: " in shown.done.stdout


def test_nobody_is_called(shown: Shown) -> None:
    assert shown.calls, "the guard saw not even the run speak to its server"
    assert {host for _, host in shown.calls if not host.startswith("/")} <= {"127.0.0.1"}  # a path: this machine


def test_no_process_is_left_and_the_users_home_is_untouched(shown: Shown) -> None:
    assert not [process for process, _ in shown.calls if Path(f"/proc/{process}").exists()]
    assert list(shown.home.iterdir()) == []
    assert (shown.root / "prefect" / "server.log").read_text("utf-8") == ""


def test_a_failed_step_is_our_error_and_what_was_reused_is_seen(recipe: Path, up_to_label: Path) -> None:
    environ = dict(os.environ)
    with pytest.raises(DataError, match="may not label") as raised:
        must.run(recipe, up_to_label, ["runtime.runner=threads", "teachers.masks.require={miou: 0.99}"])
    assert raised.value.exit_code == 3
    assert dict(os.environ) == environ
    runs = {name: (state, message) for name, state, message, *_ in prefect_says(up_to_label, TASK_RUNS)}
    assert {name for name, (state, _) in runs.items() if state == "Cached"} == set(STEPS[:5])
    assert runs["teacher.masks"][1].startswith("found on disk: ")
    state, message = runs["label"]
    assert state == "Failed"
    assert message == str(raised.value)
    [(_, state, message)] = prefect_says(up_to_label, FLOW_RUNS)
    assert state == "Failed"
    assert message == str(raised.value)
    assert [event["event"] for event in events(up_to_label)[-3:]] == ["started", "failed", "ended"]


def test_a_server_of_the_users_own_that_does_not_answer_is_an_error(recipe: Path, root: Path) -> None:
    environ = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api", "HOME": str(root)}
    command = [str(MUST), "run", str(recipe), "--root", str(root), *THREADS]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("must: PREFECT_API_URL is http://127.0.0.1:9/api, which does not answer")
    assert done.stderr.count("\n") == 1
    assert not (root / "prefect" / "prefect.db").exists()


def test_a_stopped_run_is_cancelled_in_prefect_and_goes_on(root: Path, start: Start, goes_on: GoesOn) -> None:
    process = start(root, *THREADS, "-o", "runtime.checkpoint_s=1000")
    within(lambda: logged(root, "teacher.masks") >= 3, process)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join()
    assert process.exitcode == 75
    assert next(root.glob("artifacts/teacher.masks/*/work/state.safetensors")).stat().st_size > 0
    states = {name: state for name, state, *_ in prefect_says(root, TASK_RUNS)}
    assert states == {"data.world": "Completed", "data.pool": "Completed", "teacher.masks": "Cancelled"}
    [(_, state, message)] = prefect_says(root, FLOW_RUNS)
    assert state == "Cancelled"
    assert message.startswith("Stopped in teacher.masks; what is done is kept.")
    goes_on(root)


@pytest.mark.slow
def test_a_step_that_is_made_anew_and_killed_goes_on_as_well(root: Path, start: Start, whole: Path) -> None:
    process = start(root, *THREADS, "--force", "teacher.masks")
    within(lambda: logged(root, "teacher.masks") >= 3, process)
    (log,) = root.glob("artifacts/teacher.masks/*/log/train.jsonl")
    first = log.read_text("utf-8").splitlines()[0]
    os.kill(worker(root, "teacher.masks"), signal.SIGKILL)
    process.join()
    assert process.exitcode == 0
    assert digests(root) == digests(whole)
    assert log.read_text("utf-8").splitlines()[0] == first, "it began again from nothing"


@pytest.mark.parametrize("step", ["teacher.masks", "label"])
def test_a_step_whose_process_is_killed_goes_on_by_itself(
    step: str, recipe: Path, whole: Path, root: Path, start: Start
) -> None:
    process = start(root, *THREADS)
    if step == "label":
        within(lambda: len(list(root.glob("labels/*/[!.]*"))) >= 3, process)
    else:
        within(lambda: logged(root, step) >= 3, process)
    os.kill(worker(root, step), signal.SIGKILL)
    process.join()
    assert process.exitcode == 0
    assert digests(root) == digests(whole)
    killed = [event for event in events(root) if event["event"] == "killed"]
    assert [event["step"] for event in killed] == [step]
    assert "SIGKILL" in killed[0]["error"]
    logged_there = prefect_says(
        root, "select message from log where message like '%SIGKILL%goes on from what it saved%'"
    )
    assert len(logged_there) == 1


def worker(root: Path, step: str) -> int:
    """The process that is at work on a step: who holds its claim."""
    (claim,) = root.glob(f"claims/{step}/*/*.json")
    return int(json.loads(claim.read_text("utf-8"))["holder"]["number"])


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 0.5, 2.0, 4.0])
def test_ctrl_c_while_the_code_is_loaded_is_a_stop(after_s: float, root: Path, recipe: Path) -> None:
    command = [str(MUST), "run", str(recipe), "--root", str(root), *THREADS, "-o", "student.steps=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as run:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        while not children.read_text("ascii").strip():
            time.sleep(0.01)
        time.sleep(after_s)
        os.killpg(run.pid, signal.SIGINT)
        _, told = run.communicate()
    assert run.returncode == 75, told.decode()
    assert b"Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize("step", ["teacher.masks", "label", "student"])
def test_a_run_killed_under_prefect_comes_to_the_same_end(
    step: str, root: Path, start: Start, goes_on: GoesOn, dice: random.Random
) -> None:
    process, moment = start(root, *THREADS), dice.randint(1, 50)
    if step == "label":
        within(lambda: len(list(root.glob("labels/*/[!.]*"))) >= moment % 12 + 1, process)
    else:
        within(lambda: logged(root, step) >= moment, process)
    process.kill()
    process.join()
    assert events(root)[-1]["step"] == step
    goes_on(root)


@pytest.mark.slow
def test_a_server_that_dies_takes_no_result_with_it(root: Path, recipe: Path, whole: Path) -> None:
    """Prefect's client tries again for two minutes; the results are there, and shown, before it gives up."""
    command = [str(MUST), "run", str(recipe), "--root", str(root), *THREADS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout
        for line in run.stdout:
            if line.startswith("teacher.masks"):
                break
        server = subprocess.run(
            ["pgrep", "-P", str(run.pid), "-f", "flows.server.embedded"], capture_output=True, text=True, check=True
        ).stdout
        os.kill(int(server), signal.SIGKILL)
        rest = run.stdout.read()
    assert run.returncode == 0, rest
    assert digests(root) == digests(whole)
    assert [event["event"] for event in events(root)][-2:] == ["prefect", "finished"]


@pytest.mark.slow
def test_a_server_of_the_users_own_is_used(recipe: Path, root: Path, tmp_path: Path) -> None:
    from flows.server.embedded import Server, write_logging  # noqa: PLC0415
    from pipeline.steps.runtime import Runtime  # noqa: PLC0415

    theirs = tmp_path / "theirs"
    write_logging(theirs)
    server = Server(theirs)
    try:
        server.wait(Runtime(Root.of(tmp_path)))
        environ = os.environ | {"PREFECT_API_URL": server.url, "HOME": str(tmp_path)}
        command = [str(MUST), "run", str(recipe), "--root", str(root), *THREADS]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    finally:
        server.stop()
    assert (done.returncode, done.stderr) == (0, "")
    assert not (root / "prefect" / "prefect.db").exists()
    shutil.copytree(theirs, root / "theirs" / "prefect")
    assert len(prefect_says(root / "theirs", TASK_RUNS)) == len(STEPS)
