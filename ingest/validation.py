"""Held-out images that a training is measured on while it runs: those of a split "val", never of "test"."""

from __future__ import annotations

from collections.abc import Mapping

from ingest.dataset import IngestedSet
from ingest.true_labels import true_label_dataset
from pipeline.data.dataset import ImageDataset
from pipeline.errors import ConfigError

SPLIT = "val"


def validation_sets(
    sets: Mapping[str, tuple[str, IngestedSet]], tasks: Mapping[str, str], train: bool = False
) -> dict[str, ImageDataset]:
    """Return labelled validation images by head, of the heads whose set has some.

    Raises ConfigError, naming the sets, if none has any.

    Args:
        sets: by head, the name of the set whose labels it learns, and the set.
        tasks: by head, its task; the images' labels are under the head.
        train: True if the set has to have labels to train on as well.
    """
    needed = ("train", SPLIT) if train else (SPLIT,)
    found = {
        head: true_label_dataset(ingested, SPLIT, {head: tasks[head]})
        for head, (_, ingested) in sets.items()
        if all(ingested.counts.get(f"labels.{tasks[head]}.{split}") for split in needed)
    }
    if found:
        return found
    lacking = [
        f"the set {name!r} has no images with labels for {tasks[head]!r} in its split {' and '.join(needed)!r}"
        for head, (name, ingested) in sets.items()
    ]
    raise ConfigError(
        f"validate: {'; '.join(lacking) or 'no teacher learns from a labelled set'}. Add a split {SPLIT!r} with "
        "labels, or leave validate out."
    )
