"""A step's output and progress in the log of its task run."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from pathlib import Path

import pytest

from flows.orchestration import ui
from flows.orchestration.ui import LogTail
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
