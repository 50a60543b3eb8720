"""A pool of images, ingested as often as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from tests.ingest.photos import Make, add_image, step_for


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Nine images of no set in particular, 10.png to 90.png."""
    for number in range(10, 100, 10):
        add_image(tmp_path / "pool", f"{number}.png", number)
    return tmp_path / "pool"


@pytest.fixture
def make(runtime: Runtime) -> Make:
    """Ingests a folder: (folder, then what `step_for` takes) -> the artifact, three images a shard."""
    return lambda root, *kind, **options: Workspace(runtime.root).make(
        step_for(root, *kind, **options), Inputs({}, runtime)
    )
