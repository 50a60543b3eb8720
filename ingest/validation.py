"""Held-out images that a training is measured on while it runs: those of a split "val", never of "test"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingest.dataset import IngestedSet
from ingest.true_labels import true_label_dataset
from pipeline.data.dataset import ImageDataset
from pipeline.errors import ConfigError, error_context
from pipeline.steps.artifact import Inputs
from pipeline.stores.labels import LabelSpace

SPLIT = "val"


def check_measurable(images: ImageDataset, space: LabelSpace, place: str, head: str) -> None:
    """Raise ConfigError, beginning with the `place` of the images, if their labels of a head define no metric."""
    from tasks import model  # noqa: PLC0415 - loads torch
    from tasks.scoring import is_measurable, undefined_reason  # noqa: PLC0415

    if not is_measurable(model(space), (images.values(index).get(head) for index in range(len(images)))):
        raise ConfigError(
            f"{place} can't tell how good predictions for {space.task!r} are: {undefined_reason(space.task)}. Add "
            "held-out images with labels that do."
        )


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
    for head, images in found.items():
        name, ingested = sets[head]
        with error_context("validate"):
            check_measurable(images, ingested.spaces[tasks[head]], f"the set {name!r}, split {SPLIT!r}", head)
    if found:
        return found
    lacking = [
        f"the set {name!r} has no images with labels for {tasks[head]!r} in its split {' or '.join(map(repr, splits))}"
        for head, (name, ingested) in sets.items()
        if (splits := [split for split in needed if not ingested.counts.get(f"labels.{tasks[head]}.{split}")])
    ]
    raise ConfigError(
        f"validate: {'; '.join(lacking) or 'no teacher learns from a labelled set'}. Add a split {SPLIT!r} with "
        "labels, or leave validate out."
    )


def check_held_out(config: Mapping[str, Any], inputs: Inputs) -> None:
    """Raise ConfigError if one of the sets to evaluate on, `config["sets"]`, has no held-out image with a label."""
    for name in config["sets"]:
        ingested = IngestedSet(inputs[f"data.{name}"])
        if not any(ingested.held_out_split("test", task) for task in ingested.spaces):
            raise ConfigError(
                f"sets: the set {name!r} has no held-out image with a label for {', '.join(ingested.spaces)}: give it "
                "a split 'test' or 'val', or leave the set out."
            )
