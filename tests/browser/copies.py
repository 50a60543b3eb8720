"""A page over a copy of the tiny world, in which things may be rejected and damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

from browser.answers import Answers
from browser.loading import Loading
from pipeline.storage.root import Root
from tests.conftest import World


def copied(world: World, root: Path) -> Answers:
    """What the page answers over a copy of the world's root at `root`, all of it read."""
    shutil.copytree(Path(world.workspace.root.path), root, copy_function=shutil.copy)
    loading = Loading(Root.of(root))
    loading.look()
    return Answers(loading)
