"""Fixtures: a folder of images and a function that ingests folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from tests.ingest.photos import Make, add_image, step_for


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Save nine images, 10.png to 90.png, and return their folder."""
    for number in range(10, 100, 10):
        add_image(tmp_path / "pool", f"{number}.png", number)
    return tmp_path / "pool"


@pytest.fixture
def make(runtime: Runtime) -> Make:
    """Return a function that ingests a folder, with the arguments of `step_for`, and returns the artifact."""
    return lambda root, *kind, **options: Workspace(runtime.root).make(
        step_for(root, *kind, **options), Inputs({}, runtime)
    )
