"""Processes: told apart although pids are reused, as zombies, and in leases of earlier versions."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.storage.process_id import ENDED, ProcessId


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when its input does."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as started:
        yield started


def end(child: subprocess.Popen[bytes]) -> None:
    """End the child and leave it a zombie."""
    assert child.stdin
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_process_id_current_has_not_ended() -> None:
    assert not ProcessId.current().has_ended()
    assert ProcessId.current() == ProcessId.from_pid(os.getpid())


def test_process_id_has_ended_for_a_zombie_and_after_it(child: subprocess.Popen[bytes]) -> None:
    process = ProcessId.from_pid(child.pid)
    assert not process.has_ended()
    end(child)
    assert process.has_ended()
    child.wait()
    assert process.has_ended()


def test_process_id_from_pid_of_a_zombie_has_ended(child: subprocess.Popen[bytes]) -> None:
    end(child)
    process = ProcessId.from_pid(child.pid)
    assert process.started == ENDED
    assert process.has_ended()


def test_process_id_has_ended_when_its_pid_is_reused() -> None:
    assert dataclasses.replace(ProcessId.current(), started="1").has_ended()


def test_process_id_has_not_ended_on_another_machine() -> None:
    assert not dataclasses.replace(ProcessId.current(), machine="elsewhere", number=2**22 + 1).has_ended()


@pytest.mark.skipif(not psutil.LINUX, reason="reads /proc")
def test_process_id_started_is_the_starttime_of_proc() -> None:
    """Leases on disk that earlier versions wrote hold this number."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert ProcessId.current().started == fields[19]


def test_process_id_has_not_ended_while_hidden_from_this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `hidepid`: the process is there, but /proc does not show it."""
    process = ProcessId.current()

    def hidden(_: int) -> None:
        raise psutil.NoSuchProcess(process.number)

    monkeypatch.setattr(psutil, "Process", hidden)
    assert not process.has_ended()


def test_process_id_names_process_and_host() -> None:
    assert str(ProcessId("host boot pid:[1]", 12, "1")) == "process 12 on host"
