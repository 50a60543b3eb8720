"""Files and artifacts of a root on this machine as the paths that they are, and paths as such files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline.steps.artifact import Artifact, contents
from pipeline.storage.root import Root, StoredFile, hash_file
from pipeline.stores.images import ImageShard


def folder_of(made: Artifact) -> Path:
    """The folder of an artifact."""
    return Path(made.root / made.path)


def made_in(folder: Path, step: str = "step") -> Artifact:
    """Return the artifact that a step, of the kind that begins its name, left in a folder."""
    return named(step, Artifact(Root.of(folder.parent), folder.name, contents(folder)))


def named(step: str, made: Artifact) -> Artifact:
    """The artifact as that of a step of this name: `teacher.kind` is of the kind `teacher`."""
    section = step.split(".")
    return dataclasses.replace(made, manifest={**made.manifest, "kind": section[0], "section": section})


def resealed(made: Artifact) -> Artifact:
    """The artifact with the files as they are in its folder now, some of which a test has changed."""
    files = {**made.manifest["files"], **contents(folder_of(made))["files"]}
    return dataclasses.replace(made, manifest={**made.manifest, "files": files})


def stored(path: Path) -> StoredFile:
    """A file of this machine, whether it is there or not."""
    facts = {"size": path.stat().st_size, "sha256": hash_file(path)} if path.exists() else {"size": 0, "sha256": ""}
    return Root.of(path.parent).file(path.name, facts)


def image_shard(tar: Path) -> ImageShard:
    """The image shard of a tar and the index beside it."""
    return ImageShard(stored(tar), stored(tar.with_suffix(".parquet")))
