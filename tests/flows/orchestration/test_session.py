"""Runs with Prefect: the same artifacts, everything recorded, no other host contacted, nothing left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import must
from cli.main import main
from pipeline.errors import DataError
from pipeline.storage.root import Root
from tests.flows.tiny import (
    SAVES,
    STEPS,
    THREADS,
    TRAIN_STEPS,
    digests,
    environ_without_prefect,
    events,
    logged_steps,
    query_prefect,
)
from tests.forked import run_must
from tests.run_fixtures import Resume, add_database
from tests.waiting import wait_until

Start = Callable[..., BaseProcess]
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
"""A sitecustomize that records the hosts that every Python process below connects to."""

TASK_RUNS = """
    select r.name, r.state_name, s.message, r.task_inputs, f.name
    from task_run r join task_run_state s on r.state_id = s.id join flow_run f on r.flow_run_id = f.id
"""
FLOW_RUNS = "select r.name, r.state_name, s.message from flow_run r join flow_run_state s on r.state_id = s.id"


@dataclasses.dataclass(frozen=True)
class PrefectRun:
    """A run by the command, as a user starts it."""

    root: Path
    home: Path
    done: subprocess.CompletedProcess[str]
    calls: list[tuple[int, str]]
    """(process, host) of every connection of the command and the server."""


@pytest.fixture(scope="module")
def prefect_run(
    finished_root: Path, recipe: Path, prefect_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> PrefectRun:
    folder = tmp_path_factory.mktemp("shown")
    root, home = folder / "root", folder / "home"
    home.mkdir()
    add_database(root, prefect_database)
    shutil.copytree(finished_root / "machine", root / "machine")
    (folder / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    environ = environ_without_prefect() | {"HOME": str(home), "PYTHONPATH": str(folder), "CALLS": str(folder / "calls")}
    command = [str(MUST), "run", str(recipe), "--root", str(root), *THREADS]
    done = subprocess.run(command, env=environ, cwd=home, capture_output=True, text=True, check=False)
    lines = (folder / "calls").read_text("utf-8").splitlines() if (folder / "calls").exists() else []
    calls = [(int(process), host) for process, host in (line.split(" ", 1) for line in lines)]
    return PrefectRun(root, home, done, calls)


def test_run_with_prefect_makes_the_artifacts_of_an_inline_run(prefect_run: PrefectRun, finished_root: Path) -> None:
    assert prefect_run.done.returncode == 0, prefect_run.done.stderr
    assert digests(prefect_run.root) == digests(finished_root)
    steps = [(event["event"], event.get("step")) for event in events(prefect_run.root)]
    assert steps == [(event["event"], event.get("step")) for event in events(finished_root)]


def test_run_with_prefect_records_a_task_run_per_step_after_its_inputs(prefect_run: PrefectRun) -> None:
    runs = query_prefect(prefect_run.root, TASK_RUNS)
    assert sorted(name for name, *_ in runs) == sorted(STEPS)
    assert {state for _, state, *_ in runs} == {"Completed"}
    assert all(message.startswith("made: ") for _, _, message, *_ in runs)
    upstream = {name: len(json.loads(inputs).get("wait_for", [])) for name, _, _, inputs, _ in runs}
    plan = json.loads(next((prefect_run.root / "runs").glob("*/plan.json")).read_text("utf-8"))
    assert [row["step"] for row in plan] == STEPS
    assert upstream == {step.name: len(step.inputs) for step in (each.step for each in planned(prefect_run))}


def planned(prefect_run: PrefectRun) -> list[Any]:
    return must.plan(next((prefect_run.root / "runs").iterdir()) / "recipe.yaml", prefect_run.root)


def test_flow_run_is_named_after_the_run_and_completed(prefect_run: PrefectRun) -> None:
    folder = next((prefect_run.root / "runs").iterdir())
    assert query_prefect(prefect_run.root, FLOW_RUNS) == [(folder.name, "Completed", "8 steps made, 0 reused")]
    assert query_prefect(prefect_run.root, "select name from flow") == [("selftrain",)]


def test_show_results_creates_a_table_of_metrics(prefect_run: PrefectRun) -> None:
    [(kind, data)] = query_prefect(prefect_run.root, "select type, data from artifact where key = 'tiny-metrics'")
    assert kind == "table"
    rows = json.loads(json.loads(data))
    records = json.loads(next((prefect_run.root / "runs").glob("*/metrics.json")).read_text("utf-8"))
    assert [row["value"] for row in rows] == pytest.approx([record["value"] for record in records], rel=1e-3)
    assert {"student", "teacher:masks"} <= {row["model"] for row in rows}


def test_show_results_creates_a_page_with_pictures_of_labels(prefect_run: PrefectRun) -> None:
    [(data,)] = query_prefect(prefect_run.root, "select data from artifact where key = 'tiny-report'")
    text = json.loads(data)
    folder = next((prefect_run.root / "runs").iterdir())
    assert str(folder / "report.html") in text
    assert text.count("(data:image/jpeg;base64,") == 4 * 3
    assert {line.split(" | ")[1] for line in text.split("## Steps")[1].splitlines() if line.startswith("| `")} == {
        "made"
    }


def test_step_pages_belong_to_the_task_runs_of_their_steps(prefect_run: PrefectRun) -> None:
    query = "select r.name, a.key, a.description from artifact a join task_run r on a.task_run_id = r.id"
    pages = query_prefect(prefect_run.root, f"{query} where a.type = 'markdown'")
    assert {step: key for step, key, _ in pages} == {step: f"tiny-{step.replace('.', '-')}" for step in STEPS}
    [card] = [card for step, _, card in pages if step == "teacher.masks"]
    assert card.startswith("miou 0.")
    assert card.count("](data:image/") == 2, "a curve and a picture"


def test_log_warnings_logs_what_the_report_warns_of(prefect_run: PrefectRun) -> None:
    query = "select r.name, l.message from log l join task_run r on l.task_run_id = r.id where l.level = 30"
    warnings = query_prefect(prefect_run.root, query)
    assert {step for step, _ in warnings} >= {"student", "evaluate"}
    assert any(step == "student" and message.startswith("Kept labels: masks: ") for step, message in warnings)


def test_run_with_prefect_prints_nothing_of_prefect(prefect_run: PrefectRun) -> None:
    assert prefect_run.done.stderr == ""
    assert "prefect" not in prefect_run.done.stdout.lower()
    for step in STEPS:
        assert f"{step} 100% made in" in prefect_run.done.stdout
    assert "Report: " in prefect_run.done.stdout


def test_run_with_prefect_connects_to_no_other_host(prefect_run: PrefectRun) -> None:
    assert prefect_run.calls, "the guard did not even see the run connect to its server"
    assert {host for _, host in prefect_run.calls if not host.startswith("/")} <= {"127.0.0.1"}  # a path: this machine


def test_run_with_prefect_leaves_no_process_and_no_file_at_home(prefect_run: PrefectRun) -> None:
    assert not [process for process, _ in prefect_run.calls if Path(f"/proc/{process}").exists()]
    assert list(prefect_run.home.iterdir()) == []
    log = (prefect_run.root / "prefect" / "server.log").read_text("utf-8")
    assert log.partition("Exception during reset or similar")[0] == ""  # SQLAlchemy's, of what was open at the end


@dataclasses.dataclass(frozen=True)
class DisturbedRuns:
    """A run that was stopped in its teacher, and the next one, whose processes of teacher and labels were killed."""

    root: Path
    exit_codes: list[int | None]
    saved: int
    """Bytes of the teacher's state after the stop."""


@pytest.fixture(scope="module")
def disturbed(
    recipe: Path, finished_root: Path, prefect_database: Path, spawner: Any, tmp_path_factory: pytest.TempPathFactory
) -> DisturbedRuns:
    root = tmp_path_factory.mktemp("disturbed")
    add_database(root, prefect_database)
    shutil.copytree(finished_root / "machine", root / "machine")
    exit_codes = []
    with run_in_background(spawner, recipe, root) as process:
        wait_until(lambda: logged_steps(root, "teacher.masks") >= 3, process)
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join()
        exit_codes.append(process.exitcode)
    (state,) = root.glob("artifacts/teacher.masks/*/work/state.safetensors")
    saved, done = state.stat().st_size, logged_steps(root, "teacher.masks")
    with run_in_background(spawner, recipe, root, *SAVES, "--to", "label") as process:
        wait_until(lambda: logged_steps(root, "teacher.masks") > done, process)
        os.kill(process_of(root, "teacher.masks"), signal.SIGKILL)
        wait_until(lambda: len(list(root.glob("labels/*/[!.]*"))) >= 3, process)
        os.kill(process_of(root, "label"), signal.SIGKILL)
        process.join()
        exit_codes.append(process.exitcode)
    return DisturbedRuns(root, exit_codes, saved)


@contextlib.contextmanager
def run_in_background(spawner: Any, recipe: Path, root: Path, *more: str) -> Iterator[BaseProcess]:
    """Yield the process of a run with Prefect, which is killed at exit if it has not ended."""
    process = spawner.Process(target=run_must, args=({}, ["run", str(recipe), "--root", str(root), *THREADS, *more]))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def process_of(root: Path, step: str) -> int:
    """Return the pid of the process that makes a step: it holds the lock."""
    (lease,) = root.glob(f"claims/{step}/*/*.json")
    return int(json.loads(lease.read_text("utf-8"))["holder"]["number"])


def task_runs(root: Path, flow_run: str) -> dict[str, tuple[str, str]]:
    """Return (state, message) of the task runs of a flow run, by step."""
    found = query_prefect(root, f"{TASK_RUNS} where f.name = '{flow_run}'")
    return {name: (state, message) for name, state, message, *_ in found}


def test_stopped_run_is_cancelled_in_prefect(disturbed: DisturbedRuns) -> None:
    assert disturbed.exit_codes[0] == 75
    assert disturbed.saved > 0
    [(flow_run, message)] = [
        (name, message) for name, state, message in query_prefect(disturbed.root, FLOW_RUNS) if state == "Cancelled"
    ]
    assert message.startswith("Stopped in teacher.masks; what is done is kept.")
    states = {name: state for name, (state, _) in task_runs(disturbed.root, flow_run).items()}
    assert states == dict.fromkeys(STEPS[:3], "Completed") | {"teacher.masks": "Cancelled"}


def test_step_whose_process_is_killed_resumes_by_itself(disturbed: DisturbedRuns, finished_root: Path) -> None:
    assert disturbed.exit_codes[1] == 0
    expected = digests(finished_root)
    assert digests(disturbed.root) == {step: expected[step] for step in STEPS[:6]}
    killed = [event for event in events(disturbed.root) if event["event"] == "killed"]
    assert [event["step"] for event in killed] == ["teacher.masks", "label"]
    assert all("SIGKILL" in event["error"] for event in killed)
    query = "select message from log where message like '%SIGKILL%goes on from what it saved%'"
    assert len(query_prefect(disturbed.root, query)) == 2


def test_failed_step_raises_our_error_and_reused_steps_are_cached(disturbed: DisturbedRuns, recipe: Path) -> None:
    environ, root = dict(os.environ), disturbed.root
    before = {name for name, *_ in query_prefect(root, FLOW_RUNS)}
    with pytest.raises(DataError, match="may not label") as raised:
        must.run(recipe, root, ["runtime.runner=threads", "teachers.masks.require={miou: 0.99}"])
    assert raised.value.exit_code == 3
    assert dict(os.environ) == environ
    [(flow_run, state, message)] = [run for run in query_prefect(root, FLOW_RUNS) if run[0] not in before]
    assert (state, message) == ("Failed", str(raised.value))
    runs = task_runs(root, flow_run)
    assert {name for name, (state, _) in runs.items() if state == "Cached"} == set(STEPS[:5])
    assert runs["teacher.masks"][1].startswith("found on disk: ")
    assert runs["label"] == ("Failed", str(raised.value))
    assert [event["event"] for event in events(root)[-3:]] == ["started", "failed", "ended"]


def test_user_server_that_does_not_answer_is_an_error(
    recipe: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe), "--root", str(root), *THREADS])
    printed = capfd.readouterr().err
    assert ended.value.code == 2
    assert printed.startswith("must: PREFECT_API_URL is http://127.0.0.1:9/api, which does not answer")
    assert printed.count("\n") == 1
    assert not (root / "prefect" / "prefect.db").exists()


@pytest.mark.slow
def test_forced_step_that_is_killed_resumes(root: Path, start: Start, finished_root: Path) -> None:
    process = start(root, *THREADS, *SAVES, "--force", "teacher.masks")
    wait_until(lambda: logged_steps(root, "teacher.masks") >= 3, process)
    (log,) = root.glob("artifacts/teacher.masks/*/log/train.jsonl")
    first = log.read_text("utf-8").splitlines()[0]
    os.kill(process_of(root, "teacher.masks"), signal.SIGKILL)
    process.join()
    assert process.exitcode == 0
    assert digests(root) == digests(finished_root)
    assert log.read_text("utf-8").splitlines()[0] == first, "it began again"


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 0.5, 2.0, 4.0])
def test_ctrl_c_during_imports_stops_the_run(after_s: float, root: Path, recipe: Path) -> None:
    command = [str(MUST), "run", str(recipe), "--root", str(root), *THREADS, "-o", "student.steps=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as run:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        wait_until(lambda: children.read_text("ascii").strip(), run)
        time.sleep(after_s)
        os.killpg(run.pid, signal.SIGINT)
        _, told = run.communicate()
    assert run.returncode == 75, told.decode()
    assert b"Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize("step", ["teacher.masks", "label", "student"])
def test_run_killed_under_prefect_resumes(
    step: str, root: Path, start: Start, resume: Resume, rng: random.Random
) -> None:
    process, moment = start(root, *THREADS, *SAVES), rng.randint(1, TRAIN_STEPS - 5)
    if step == "label":
        wait_until(lambda: len(list(root.glob("labels/*/[!.]*"))) >= moment % 12 + 1, process)
    else:
        wait_until(lambda: logged_steps(root, step) >= moment, process)
    process.kill()
    process.join()
    assert events(root)[-1]["step"] == step
    resume(root)


@pytest.mark.slow
def test_run_survives_the_death_of_its_server(root: Path, recipe: Path, finished_root: Path) -> None:
    """Prefect's client retries for two minutes; the results are on disk and printed before it gives up."""
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
    assert digests(root) == digests(finished_root)
    assert [event["event"] for event in events(root)][-2:] == ["prefect", "finished"]


@pytest.mark.slow
def test_user_server_is_used(recipe: Path, root: Path, tmp_path: Path) -> None:
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
    assert len(query_prefect(root / "theirs", TASK_RUNS)) == len(STEPS)
