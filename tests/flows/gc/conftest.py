"""A root to collect garbage in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(finished_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_root, tmp_path / "copy")
