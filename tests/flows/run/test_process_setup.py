"""set_up_process: idle threads sleep, freed memory stays."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from flows.run.process_setup import set_up_process

FAULTS = """
import resource, sys
from flows.run.process_setup import set_up_process
if sys.argv[1] == "set up":
    set_up_process()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray(48 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Return the page faults of allocating a block of 48 MB twenty times."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_set_up_process_keeps_freed_memory() -> None:
    assert faults("set up") < 0.2 * faults("as it is")


def test_set_up_process_keeps_the_users_wait_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    set_up_process()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    set_up_process()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
