"""Test that of several runs of one step, only the one that holds the lock seals it."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Stopped, TakenOver
from pipeline.steps.artifact import Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from tests.steps import make_step


def write(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    (out / "result.txt").write_text("abc")
    return {}


def be_taken_over(inputs: Inputs) -> bool:
    """Let another run take over the lock, unless one did before. Return True if it did now."""
    claims = inputs.runtime.root / "claims"
    first, *later = sorted(name for name in claims.files() if name.endswith(".json"))
    if not later:
        other = json.loads((claims / first).read()) | {"token": "another"}
        (claims / first.replace("0.json", "1.json")).write(json.dumps(other).encode())
    return not later


def sleep_and_write(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    be_taken_over(inputs)
    return write(config, inputs, out)


def sleep_and_stop(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Stop as soon as the lock is lost."""
    if be_taken_over(inputs):
        inputs.runtime.stop.set()
        inputs.runtime.check_stop("writing")
    return write(config, inputs, out)


def sleep_and_miss(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Miss a file that the run that took over has removed."""
    if be_taken_over(inputs):
        (out / "work" / "state").read_bytes()
    return write(config, inputs, out)


def wait_for_stop(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    while True:
        inputs.runtime.check_stop("writing")


def step(run: str) -> Step:
    return make_step("writing", f"{__name__}:{run}", {})


def files(root: Root) -> set[str]:
    """Return the names of the artifact files in a root."""
    return {name.split("/")[-1] for name in (root / "artifacts").files()}


def test_workspace_seals_while_it_holds_the_lock(any_root: Root) -> None:
    inputs = Inputs({}, Runtime(any_root))
    assert [Workspace(any_root).get_or_make(step("write"), inputs)[1] for _ in range(2)] == [True, False]
    assert (any_root / "claims").files() == {}


@pytest.mark.usefixtures("brisk_locks")
@pytest.mark.parametrize("run", ["sleep_and_write", "sleep_and_stop", "sleep_and_miss"])
def test_workspace_waits_for_the_run_that_took_over(any_root: Root, run: str) -> None:
    """That run, which is this process here, has ended without an artifact: it is made after all."""
    lines: list[str] = []
    runtime = Runtime(any_root, progress=lambda step, done, line: lines.append(line))
    artifact, made = Workspace(any_root).get_or_make(step(run), Inputs({}, runtime))
    assert made
    assert artifact.is_whole()
    assert lines == ["another run took over while this one slept"]
    assert not runtime.stop.is_set(), "the other steps of the run go on"


def test_workspace_stops_if_the_run_is_asked_to(any_root: Root) -> None:
    runtime = Runtime(any_root)
    threading.Timer(0.2, runtime.stop.set).start()
    with pytest.raises(Stopped, match="Stopped in writing"):
        Workspace(any_root).get_or_make(step("wait_for_stop"), Inputs({}, runtime))
    assert (any_root / "claims").files() == {}


def test_workspace_does_not_seal_if_the_lock_is_lost_during_upload(any_root: Root) -> None:
    held = [True, False]
    with pytest.raises(TakenOver, match="writing: another run took over"):
        Workspace(any_root).make(step("write"), Inputs({}, Runtime(any_root)), lambda: held.pop(0))
    assert files(any_root) == {"result.txt"}
