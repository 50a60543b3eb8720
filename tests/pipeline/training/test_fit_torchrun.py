"""Training launched by torchrun: stopped by a signal and launched again, it ends with the same weights."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.models.checkpoint import load_state, read_tensors
from tests.pipeline.training.tiny_jobs import LOG, STATE, log
from tests.waiting import wait_until

STEPS = 200


def launch(out: Path) -> subprocess.Popen[str]:
    run = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.pipeline.training.launched",
    ]
    command = [sys.executable, *run, str(out), str(STEPS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_fit_under_torchrun_resumes_after_a_signal(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert launch(whole).wait() == 0
    launched = launch(parts)
    wait_until(lambda: (parts / LOG).exists() and (parts / LOG).read_bytes().count(b"\n") >= 20, launched)
    launched.send_signal(signal.SIGTERM)
    output, _ = launched.communicate()
    assert launched.returncode != 0
    assert output.count("Stopped in teacher.t") == 2, output
    assert 20 <= load_state(parts / STATE)["step"] == len(log(parts)) < STEPS
    assert launch(parts).wait() == 0
    assert log(parts) == log(whole)
    found, expected = (read_tensors(out / "weights.safetensors")[1] for out in (parts, whole))
    assert all(tensor.equal(expected[name]) for name, tensor in found.items())
