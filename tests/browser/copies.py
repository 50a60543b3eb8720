"""The browser over a copy of the tiny world, in which labels may be rejected and damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

from browser.answers import Answers
from browser.loading import Loading
from pipeline.storage.root import Root
from tests.conftest import World


def copied(world: World, root: Path) -> Answers:
    """Return the answers over a copy of the world's root at `root`, fully loaded."""
    shutil.copytree(Path(world.workspace.root.path), root, copy_function=shutil.copy)
    loading = Loading(Root.of(root))
    loading.refresh()
    return Answers(loading)
