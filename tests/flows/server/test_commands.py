"""`must up`, `must down` and `must status`, and runs whose server or worker dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.tiny import THREADS, digests, environ_without_prefect, logged_steps, processes_of, query_prefect
from tests.run_fixtures import Resume, add_database
from tests.waiting import wait_until, wait_until_gone

JSON = {"Content-Type": "application/json"}
MUST = Path(sys.executable).with_name("must")


class Background:
    """`must up`, `down` and `status` with a home of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environ = environ_without_prefect() | {"MUST_HOME": str(home), "HOME": str(home.parent), "COLUMNS": "200"}

    def must(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        command = [str(MUST), *arguments]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.must("status", "--json").stdout)
        return found

    def kill(self, name: str) -> None:
        """Kill the server or the worker."""
        services = json.loads((self.home / "services.json").read_text("utf-8"))
        os.kill(services[name]["process"]["number"], signal.SIGKILL)

    def start(self, deployment: str, **parameters: Any) -> None:
        """Start a run of a deployment."""
        identity = self.ask(f"deployments/name/{deployment}")["id"]
        content = json.dumps({"parameters": parameters, "state": {"type": "SCHEDULED"}}).encode()
        self.ask(f"deployments/{identity}/create_flow_run", content)

    def ask(self, path: str, content: bytes | None = None) -> Any:
        """Return what the server answers. A busy one answers 503, after which Prefect's own client asks again."""
        url = json.loads((self.home / "services.json").read_text("utf-8"))["url"]
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(f"{url}/{path}", content, JSON)) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                time.sleep(0.5)

    def train(self, deployment: str, recipe: Path, root: Path, step: str = "teacher.masks", **parameters: Any) -> None:
        """Start a run of a deployment, and wait until it trains in the step."""
        self.start(deployment, recipe=str(recipe), root=str(root), **parameters)
        self.wait_until(lambda: logged_steps(root, step) >= 3)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; fail if a run has failed before."""

        def holds() -> bool:
            assert not {"Failed", "Crashed", "Refused"} & {state for _, state in self.states()}
            return condition()

        wait_until(holds)

    def states(self) -> list[tuple[str, str]]:
        """Return (name, state) of all flow runs."""
        return [(name, state) for name, state in query_prefect(self.home, "select name, state_name from flow_run")]


@pytest.fixture
def background(tmp_path: Path, prefect_database: Path) -> Iterator[Background]:
    up = Background(tmp_path / "home")
    add_database(up.home, prefect_database)
    done = up.must("up")
    try:
        assert done.returncode == 0, done.stderr
        yield up
    finally:
        if processes_of(up.home):
            up.must("down", "--now")
        wait_until_gone(*processes_of(up.home))


@pytest.mark.slow
def test_up_restarts_the_server_while_a_run_goes_on(
    background: Background, recipe: Path, root: Path, finished_root: Path
) -> None:
    before = background.status()
    command = [str(MUST), "run", str(recipe), "--root", str(root), *THREADS]
    with subprocess.Popen(command, env=background.environ, stdout=subprocess.PIPE, text=True) as run:
        wait_until(lambda: logged_steps(root, "teacher.masks") >= 3, run)
        background.kill("server")
        again = background.must("up")
        output = run.communicate()[0]
    assert again.returncode == 0, again.stderr
    assert run.returncode == 0, output
    assert digests(root) == digests(finished_root)
    after = background.status()
    assert (after["url"], after["worker"]) == (before["url"], before["worker"])
    assert after["server"]["process"] != before["server"]["process"]
    assert not (root / "prefect").exists()
    [(name, state)] = background.states()
    assert (name, state) == (next((root / "runs").iterdir()).name, "Completed")
    assert {kind for (kind,) in query_prefect(background.home, "select key from artifact")} >= {"tiny-report"}


@pytest.mark.parametrize("worker_killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_down_stops_a_deployed_run(background: Background, recipe: Path, root: Path, worker_killed: bool) -> None:
    background.train("must/train-teacher", recipe, root, teacher="masks", steps=100_000)
    if worker_killed:
        background.kill("worker")
        assert background.must("up").returncode == 0
    refused = background.must("down")
    assert refused.returncode == 2
    [run] = background.status()["runs"]
    assert f"train-teacher {run['name']} (teacher.masks)" in refused.stderr
    assert os.getpgid(run["process"]) == run["process"]
    ended = background.must("down", "--now")
    assert ended.stdout.splitlines() == [f"Stopping {run['name']} ...", "Ended: worker, server."]
    assert background.states() == [(run["name"], "Cancelled")]
    assert list(root.glob("artifacts/teacher.masks/*/work/state.safetensors"))


@pytest.mark.slow
def test_run_finishes_without_its_worker(background: Background, recipe: Path, root: Path, finished_root: Path) -> None:
    background.train("must/selftrain", recipe, root)
    background.kill("worker")
    background.wait_until(lambda: "Completed" in dict(background.states()).values())
    assert digests(root) == digests(finished_root)
    assert not background.status()["worker"]["alive"]


@pytest.mark.slow
def test_up_marks_a_run_killed_with_its_worker_as_crashed(
    background: Background, recipe: Path, root: Path, resume: Resume
) -> None:
    background.train("must/selftrain", recipe, root, "student", overrides=["student.steps=100000"])
    [run] = background.status()["runs"]
    background.kill("worker")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run["process"], signal.SIGKILL)
    assert background.must("up").returncode == 0
    assert background.states() == [(run["name"], "Crashed")]
    assert background.must("down").returncode == 0
    resume(root)


@pytest.mark.slow
def test_up_of_two_users_at_once_starts_two_servers(tmp_path: Path) -> None:
    both = [Background(tmp_path / name / "home") for name in ("one", "other")]
    for each in both:
        each.home.parent.mkdir()
    started = [subprocess.Popen([str(MUST), "up"], env=each.environ, stdout=subprocess.PIPE) for each in both]
    try:
        assert [process.wait() for process in started] == [0, 0]
        assert len({each.status()["url"] for each in both}) == 2
        assert all(each.status()["answers"] for each in both)
    finally:
        for each, process in zip(both, started, strict=True):
            process.communicate()
            each.must("down", "--now")
            wait_until_gone(*processes_of(each.home))


@pytest.mark.slow
def test_up_starts_only_a_worker_for_a_user_server(background: Background, tmp_path: Path) -> None:
    theirs = Background(tmp_path / "second")
    theirs.environ["PREFECT_API_URL"] = background.status()["url"]
    assert theirs.must("up").returncode == 0
    status = theirs.status()
    assert (status["own_server"], status["server"], status["worker"]["alive"]) == (False, None, True)
    assert theirs.must("down").stdout == "Ended: worker.\n"
    assert background.status()["answers"]
