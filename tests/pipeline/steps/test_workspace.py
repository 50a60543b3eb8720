"""Test that of several runs of one step, only the one that holds the lock seals it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import TakenOver
from pipeline.steps.artifact import Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from tests.steps import make_step


def write(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    (out / "result.txt").write_text("abc")
    return {}


def sleep_and_write(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Let another run take over the lock."""
    claims = inputs.runtime.root / "claims"
    (mine,) = claims.files()
    (claims / mine.replace("0.json", "1.json")).write((claims / mine).read())
    return write(config, inputs, out)


def step(run: str) -> Step:
    return make_step("writing", f"{__name__}:{run}", {})


def files(root: Root) -> set[str]:
    """Return the names of the artifact files in a root."""
    return {name.split("/")[-1] for name in (root / "artifacts").files()}


def test_workspace_seals_while_it_holds_the_lock(any_root: Root) -> None:
    inputs = Inputs({}, Runtime(any_root))
    assert [Workspace(any_root).get_or_make(step("write"), inputs)[1] for _ in range(2)] == [True, False]
    assert (any_root / "claims").files() == {}


def test_workspace_does_not_seal_after_losing_the_lock(any_root: Root) -> None:
    with pytest.raises(TakenOver, match="writing: another run took over"):
        Workspace(any_root).get_or_make(step("sleep_and_write"), Inputs({}, Runtime(any_root)))
    assert files(any_root) == ({"result.txt"} if any_root.local else set()), "put among what the other run makes"


def test_workspace_does_not_seal_if_the_lock_is_lost_during_upload(any_root: Root) -> None:
    held = [True, False]
    with pytest.raises(TakenOver, match="writing: another run took over"):
        Workspace(any_root).make(step("write"), Inputs({}, Runtime(any_root)), lambda: held.pop(0))
    assert files(any_root) == {"result.txt"}
