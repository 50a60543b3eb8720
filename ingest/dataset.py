"""A set as ingesting left it, and whether its labels fit a teacher."""

from __future__ import annotations

from collections.abc import Mapping

from ingest.incremental import image_shard, shards_of
from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact, read_json
from pipeline.storage.root import StoredFile
from pipeline.stores.images import ImageStore
from pipeline.stores.labels import LabelSpace


def teacher_space(teacher: str, task: str, data: str, spaces: Mapping[str, LabelSpace]) -> LabelSpace:
    """What a teacher's task means in the set `data`, of these label spaces. ConfigError if it has no such labels."""
    if task not in spaces:
        raise ConfigError(
            f"teachers.{teacher}: the set {data!r} has no labels for {task!r}; it has them for "
            f"{', '.join(sorted(spaces)) or 'nothing'}."
        )
    return spaces[task]


def check_labels_fit(teacher: str, space: LabelSpace, data: str, spaces: Mapping[str, LabelSpace]) -> None:
    """Raise ConfigError unless the set `data`, of these label spaces, has labels that mean what the teacher's do."""
    found = spaces.get(space.task)
    if found == space:
        return
    there = _told(found) if found else f"none; it has labels for {', '.join(sorted(spaces)) or 'nothing'}"
    raise ConfigError(
        f"student.truths.{teacher}: the set {data!r} does not speak the language of teacher {teacher!r}. "
        f"The teacher's labels: {_told(space)}. The set's: {there}. They have to be the same, in the same order."
    )


def _told(space: LabelSpace) -> str:
    classes = f" of {len(space.classes)} classes: {', '.join(space.classes)}" if space.classes else f", {space.scale}"
    return f"{space.task}{classes}"


class IngestedSet:
    """A set on disk: its splits, label spaces, image stores and true labels."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        about = artifact.load("set.json", read_json)
        self.splits: dict[str, int] = about["splits"]
        self.counts: dict[str, int] = about["counts"]
        self.spaces = {task: LabelSpace.from_json(space) for task, space in about["spaces"].items()}

    def images(self, split: str) -> ImageStore:
        """The image store of a split; empty if the set has none."""
        return ImageStore([image_shard(self.artifact, tar) for tar in shards_of(self.artifact, split)])

    def true_labels(self, task: str, split: str, shard: str) -> StoredFile:
        """The true labels of one image shard."""
        return self.artifact.file(f"labels/{task}/{split}/{shard}.parquet")

    def held_out_split(self, preferred: str, task: str | None = None) -> str | None:
        """The split to evaluate on: `preferred`, or the other held-out one, or None; with `task`, one that has its
        labels.
        """
        other = {"test": "val", "val": "test"}[preferred]
        what = "images" if task is None else f"labels.{task}"
        return next((split for split in (preferred, other) if self.counts.get(f"{what}.{split}")), None)
