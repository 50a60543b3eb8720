"""Whether a process still is."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.storage.process_id import ProcessId


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when its input does."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as started:
        yield started


def end(child: subprocess.Popen[bytes]) -> None:
    """Let it end; nobody has asked how it did, so the system remembers it."""
    assert child.stdin
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_this_process_is_at_work() -> None:
    assert not ProcessId.this().ended()
    assert ProcessId.this() == ProcessId.numbered(os.getpid())


def test_one_that_ends_is_known_to(child: subprocess.Popen[bytes]) -> None:
    process = ProcessId.numbered(child.pid)
    assert not process.ended()
    end(child)
    assert process.ended()
    child.wait()
    assert process.ended()


def test_one_that_had_ended_when_it_was_noted_is_known_to(child: subprocess.Popen[bytes]) -> None:
    end(child)
    process = ProcessId.numbered(child.pid)
    assert process.ended()


def test_a_number_that_is_given_again_is_another_process() -> None:
    assert dataclasses.replace(ProcessId.this(), started="1").ended()


def test_of_another_machine_nothing_is_known() -> None:
    assert not dataclasses.replace(ProcessId.this(), machine="elsewhere", number=2**22 + 1).ended()
