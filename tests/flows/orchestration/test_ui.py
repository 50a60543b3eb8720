"""What task runs show of a step: output and progress in the log, and a page of its own."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation.report.step_page import StepPage
from flows.orchestration import ui
from flows.orchestration.ui import LogTail, StepPages
from tests.waiting import wait_until


def test_log_tail_returns_new_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "step.log"
    path.write_text("before\n", "utf-8")
    tail = LogTail(path)
    assert tail.lines() == []
    with open(path, "a", encoding="utf-8") as file:
        file.write("UserWarning: a\n\nhalf")
        file.flush()
        assert tail.lines() == ["UserWarning: a"]
        file.write(" and whole\n")
    assert tail.lines() == ["half and whole"]
    assert tail.lines() == []


def test_log_tail_waits_for_the_file(tmp_path: Path) -> None:
    tail = LogTail(tmp_path / "step.log")
    assert tail.lines() == []
    (tmp_path / "step.log").write_bytes(b"\xff late\n")
    assert tail.lines() == ["\ufffd late"]


def test_log_tail_ends_at_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "step.log"
    tail = LogTail(path)
    path.write_text("warned\nTraceback (most recent call last):\n  File ...\nDataError: damaged\n", "utf-8")
    assert tail.lines() == ["warned"]
    with open(path, "a", encoding="utf-8") as file:
        file.write("more of it\n")
    assert tail.lines() == []


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ui._ProgressMirror:
    def bar(progress: float, description: str) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(ui, "UPDATE_S", 0.01)
    monkeypatch.setattr(ui, "LOG_S", 0.02)
    monkeypatch.setattr(ui, "create_progress_artifact", bar)
    return ui._ProgressMirror(logging.getLogger("a task run"), LogTail(tmp_path / "step.log"))


def test_progress_mirror_logs_progress_and_warnings_without_a_server(
    mirror: ui._ProgressMirror, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        follower = threading.Thread(target=mirror.follow)
        follower.start()
        for number in itertools.count():
            mirror.latest = (0.25, f"loss {number}, 45 images/s")
            if "%: loss" in caplog.text:
                break
            time.sleep(0.01)
        (tmp_path / "step.log").write_text("".join(f"UserWarning: {line}\n" for line in range(30)), "utf-8")
        wait_until(lambda: "lines more" in caplog.text)
        mirror.ended.set()
        follower.join()
    assert "25 %: loss" in caplog.text
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    lines = warning.getMessage().splitlines()
    assert lines[0] == "UserWarning: 0"
    assert lines[-1] == f"... and 10 lines more in {tmp_path / 'step.log'}"


class SpyRun:
    """What `StepPages` asks of a run."""

    def __init__(self) -> None:
        self.folder, self.recipe = None, SimpleNamespace(name="My Photos")
        self.errors: list[str] = []

    def record(self, event: str, error: str) -> None:
        self.errors.append(f"{event}: {error}")


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Return (key, card, body) of each artifact that is created."""
    pages: list[tuple[str, str, str]] = []
    monkeypatch.setattr(ui, "step_page", lambda record, step: StepPage(f"card of {step}", "body"))
    monkeypatch.setattr(
        ui, "create_markdown_artifact", lambda body, key, description: pages.append((key, description, body))
    )
    return pages


def test_step_pages_are_created_under_a_key_of_recipe_and_step(created: list[tuple[str, str, str]]) -> None:
    run: Any = SpyRun()
    pages = StepPages()
    for _ in range(2):
        pages.show(run, "teacher.a_b", {})
    pages.wait()
    assert created == [("my-photos-teacher-a-b", "card of teacher.a_b", "body")] * 2
    assert run.errors == []


def test_step_pages_record_what_fails(created: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(record: object, step: str) -> None:
        raise ValueError(f"{step} is odd")

    monkeypatch.setattr(ui, "step_page", fail)
    run: Any = SpyRun()
    pages = StepPages()
    pages.show(run, "pool", {})
    pages.wait()
    assert run.errors == ["prefect: no page of pool shown: ValueError: pool is odd"]


def test_step_pages_do_not_wait_for_a_server_that_is_gone(
    created: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, returned = threading.Event(), threading.Event()

    def never(*_: object, **__: object) -> None:
        gone.wait()
        returned.set()
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(ui, "create_markdown_artifact", never)
    monkeypatch.setattr(ui, "PAGES_S", 0.05)
    run: Any = SpyRun()
    pages = StepPages()
    for step in ("pool", "label"):
        pages.show(run, step, {})
    pages.wait()
    gone.set()
    for thread in pages._threads:
        thread.join()
    assert returned.is_set()
    assert run.errors == [], "the run has ended, and its events with it"
