"""Fixture that makes a root in which the world's teachers label."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.steps.runtime import Runtime, quiet
from pipeline.storage.root import Root
from pipeline.training import autotune
from pipeline.training.autotune import ComputeConfig
from tests.teachers.labelling.sandbox import LabelProgress, LabelSandbox, MakeSandbox

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture
def make_sandbox(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSandbox:
    plain = ComputeConfig("cpu", "32", False, {})  # two roots could choose differently
    monkeypatch.setattr(autotune, "autotune", lambda *_: plain)

    def make(name: str = "sandbox", workers: int = 1, progress: LabelProgress = quiet) -> LabelSandbox:
        runtime = Runtime(Root.of(tmp_path / name), "cpu", "32", workers, progress)
        return LabelSandbox(dataclasses.replace(world.inputs("label"), runtime=runtime))

    return make
