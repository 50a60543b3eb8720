"""`must run --json` prints events, one JSON object a line, and nothing else."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cli.events import FIELDS, EventStream
from cli.reference import markdown
from pipeline.errors import DataError
from tests.run_fixtures import add_database

ROOT = Path(__file__).resolve().parents[2]


def run_json(*arguments: str | Path) -> tuple[int, list[dict[str, Any]], str]:
    """Run `must run --json` and return its exit code, its events, and standard error."""
    command = [sys.executable, "-m", "cli", "run", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def fields(about: str) -> set[str]:
    """Return the names of fields in the description of an event."""
    return set(about.split("`")[1::2]) - {"metrics.json", "runtime.trackers"}


def assert_documented(events: list[dict[str, Any]]) -> None:
    for event in events:
        assert set(event) - {"time", "event"} == fields(FIELDS[event["event"]]), event


@pytest.mark.parametrize("runner", ["inline", "threads"])
def test_run_json_prints_the_events_of_a_run(recipe: Path, root: Path, prefect_database: Path, runner: str) -> None:
    add_database(root, prefect_database)
    code, events, errors = run_json(recipe, "--root", root, "--to", "data", "-o", f"runtime.runner={runner}")
    assert code == 0, errors
    assert_documented(events)
    kinds = [event["event"] for event in events]
    assert {"started", "progress", "made"} <= set(kinds)
    assert kinds[-1] == "finished"
    assert kinds.count("finished") == 1
    last = events[-1]
    assert last["made"] == kinds.count("made") == len(last["steps"])
    assert (last["reused"], last["report"], last["metrics"]) == (0, None, [])
    assert Path(last["run"]).is_dir()
    assert all(0 <= event["done"] <= 1 for event in events if event["event"] == "progress")


def test_run_json_of_a_finished_run_has_metrics_and_report(recipe: Path, finished_root: Path) -> None:
    code, events, errors = run_json(recipe, "--root", finished_root)
    assert code == 0, errors
    assert_documented(events)
    last = events[-1]
    assert last["event"] == "finished"
    assert (last["made"], last["reused"]) == (0, len(last["steps"]))
    assert Path(last["report"]).exists()
    assert last["metrics"] == json.loads((Path(last["run"]) / "metrics.json").read_text("utf-8"))


def test_run_json_ends_with_the_error_and_its_exit_code(recipe: Path, tmp_path: Path) -> None:
    code, events, errors = run_json(recipe, "--root", tmp_path, "-o", "student.backbone=test_resnett")
    assert_documented(events)
    assert [(event["event"], event["kind"], event["exit_code"]) for event in events] == [("error", "ConfigError", 2)]
    assert code == 2
    assert "timm model 'test_resnett' is unknown" in events[0]["error"]
    assert events[0]["error"] in errors


def test_event_stream_keeps_what_others_print_out_of_standard_output() -> None:
    program = (
        "import os\n"
        "from cli.events import EventStream\n"
        "with EventStream.on_standard_output() as events:\n"
        "    print('printed')\n"
        "    os.system('echo from another process')\n"
        "    events.progress('data.a', 0.5, 'half')\n"
        "print('afterwards')\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    event, afterwards = done.stdout.splitlines()
    assert (json.loads(event)["line"], afterwards) == ("half", "afterwards")
    assert done.stderr.splitlines() == ["printed", "from another process"]


def test_event_stream_tells_errors_of_any_kind_and_raises_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(error: Exception) -> Mapping[str, Any]:
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(type(error)), EventStream.on_standard_output():
            raise error
        event: dict[str, Any] = json.loads(out.getvalue())
        return event

    assert {**told(DataError("a.jpg: torn.")), "time": 0} == {
        "time": 0,
        "event": "error",
        "kind": "DataError",
        "error": "a.jpg: torn.",
        "exit_code": 3,
    }
    assert told(ValueError())["error"] == "ValueError"
    assert told(ValueError())["exit_code"] == 1


def test_reference_lists_every_event() -> None:
    page = markdown()
    assert all(f"| `{event}` | {about} |" in page for event, about in FIELDS.items())
