"""`IngestedSet`: a set as `ingest` left it, with its images and true labels; and checks that labels fit a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from ingest.incremental import image_shard, shard_tars
from pipeline.data.bands import RGB
from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact, read_json
from pipeline.storage.root import StoredFile
from pipeline.stores.images import ImageStore
from pipeline.stores.labels import LabelSpace


def teacher_space(teacher: str, task: str, data: str, spaces: Mapping[str, LabelSpace]) -> LabelSpace:
    """Return the space of a teacher's task in the set `data`, whose label spaces are `spaces`.

    Raises ConfigError if the set has no labels for the task.
    """
    if task not in spaces:
        raise ConfigError(f"teachers.{teacher}: the set {data!r} has no labels for {task!r}; it has {_tasks(spaces)}.")
    return spaces[task]


def check_labels_fit(place: str, teacher: str, space: LabelSpace, data: str, spaces: Mapping[str, LabelSpace]) -> None:
    """Raise ConfigError unless the set `data`, whose label spaces are `spaces`, has labels of the teacher's space.

    `place` is where the recipe names the set.
    """
    given = spaces.get(space.task)
    if given == space:
        return
    if given is None:
        difference = f"the set has no labels for {space.task!r}; it has {_tasks(spaces)}"
    elif given.classes != space.classes:
        both = f"{_classes(space)} of the teacher, {_classes(given)} of the set"
        difference = f"classes differ: {both}; they have to be the same, in the same order"
    else:
        name = next(
            name for name in ("scale", "unit", "aligned", "skeleton") if getattr(space, name) != getattr(given, name)
        )
        difference = f"the teacher's {name} is {getattr(space, name)}, the set's {getattr(given, name)}"
    raise ConfigError(f"{place}: labels of set {data!r} do not fit teacher {teacher!r}: {difference}.")


def _tasks(spaces: Mapping[str, LabelSpace]) -> str:
    return f"labels for {', '.join(sorted(spaces))}" if spaces else "no labels"


def _classes(space: LabelSpace) -> str:
    return f"{len(space.classes)} ({', '.join(space.classes)})"


class IngestedSet:
    """An ingested set on disk: image stores by split, and true labels by task and split.

    Example:
        ingested = IngestedSet(artifact)
        images, spaces = ingested.images("train"), ingested.spaces  # {"depth": LabelSpace("depth")}
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.channels: int = artifact.manifest["config"].get("source", {}).get("channels", RGB)
        """Channels of its images."""
        summary = artifact.load("set.json", read_json)
        self.splits: dict[str, int] = summary["splits"]
        """Number of image shards by split."""
        self.counts: dict[str, int] = summary["counts"]
        """`images`, `images.<split>`, `labels.<task>.<split>`, and what was left out."""
        self.spaces = {task: LabelSpace.from_json(space) for task, space in summary["spaces"].items()}
        """Label spaces by task."""

    def images(self, split: str) -> ImageStore:
        """Return the image store of a split; empty if the set has no such split."""
        return ImageStore([image_shard(self.artifact, tar) for tar in shard_tars(self.artifact, split)])

    def shard_names(self, split: str) -> list[str]:
        """Return the names of the image shards of a split, which no file is read for."""
        return [PurePosixPath(tar).stem for tar in shard_tars(self.artifact, split)]

    def true_labels(self, task: str, split: str, shard: str) -> StoredFile:
        """Return the label file that belongs to the image shard named `shard`."""
        return self.artifact.file(f"labels/{task}/{split}/{shard}.parquet")

    def held_out_split(self, preferred: str, task: str | None = None) -> str | None:
        """Return the split to evaluate on: of "val" and "test", `preferred` if it has images (or labels of `task`),
        else the other, else None.
        """
        other = {"test": "val", "val": "test"}[preferred]
        count = "images" if task is None else f"labels.{task}"
        return next((split for split in (preferred, other) if self.counts.get(f"{count}.{split}")), None)
