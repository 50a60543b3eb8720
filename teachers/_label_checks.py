"""The labels that a teacher is trained and validated on, and checks before any training that there are enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.steps.artifact import Inputs

if TYPE_CHECKING:
    from ingest.dataset import IngestedSet
    from pipeline.data.dataset import ImageDataset


def training_images(name: str, task: str, ingested: IngestedSet) -> ImageDataset:
    """Return the labelled images of the split "train" that are not held out as well, their labels under `name`."""
    from ingest.true_labels import held_out_keys, true_label_dataset

    return true_label_dataset(ingested, "train", {name: task}, held_out_keys(ingested))


def validation_images(config: Mapping[str, Any], ingested: IngestedSet) -> dict[str, ImageDataset]:
    """Return the images that the training is measured on, by head. Raises ConfigError if the set has none."""
    from ingest.validation import validation_sets

    name, teacher = config["name"], config["teacher"]
    return validation_sets({name: (teacher["data"], ingested)}, {name: teacher["task"]})


def check_labels(config: Mapping[str, Any], inputs: Inputs) -> None:
    """Raise ConfigError if the set of a teacher that is trained lacks labels to train on, or to validate on if asked.

    `config["teacher"]`: its `data`, `task` and `validate`.
    """
    from ingest.dataset import IngestedSet

    data, task = config["teacher"]["data"], config["teacher"]["task"]
    ingested = IngestedSet(inputs[f"data.{data}"])
    if not _has_training_image(config["name"], task, ingested):
        images = ", ".join(f"{split} {ingested.counts.get(f'images.{split}', 0)}" for split in ingested.splits)
        raise ConfigError(
            f"the set {data!r} has no image with a label for {task!r} to train on: none in its split 'train' that is "
            f"not held out as well (images by split: {images}). Add labelled images to 'train', or hold out fewer."
        )
    _check_learnable(data, task, ingested)
    _check_known_classes(data, task, ingested)
    if config["teacher"]["validate"]:
        validation_images(config, ingested)


def _check_learnable(data: str, task: str, ingested: IngestedSet) -> None:
    """Raise ConfigError if the labels to train on tell nothing: images without a box, masks without a known pixel.

    Labels are read until they tell something: nearly always the first does.
    """
    import tasks
    from pipeline.stores.labels import LabelShard
    from tasks.scoring import is_measurable, undefined_reason

    space = ingested.spaces[task]
    files = (ingested.true_labels(task, "train", name) for name in ingested.shard_names("train"))
    shards = (LabelShard(file, tasks.label(space)) for file in files)
    if is_measurable(tasks.model(space), (shard.value(row) for shard in shards for row in range(len(shard.keys)))):
        return
    raise ConfigError(
        f"the set {data!r} has nothing to learn for {task!r} in its split 'train': {undefined_reason(task)}. "
        f"{_first_note(ingested)}Label some images for it, or leave the teacher out."
    )


def _first_note(ingested: IngestedSet) -> str:
    """Return a sentence on the labels that were changed or dropped when the set was read; "" if none were."""
    from pipeline.storage.parquet import read_parquet

    count = ingested.counts.get("notes", 0)
    if not count:
        return ""
    first = ingested.artifact.load("notes.parquet", read_parquet).slice(0, 1).to_pylist()[0]
    return f"Labels dropped or changed when it was read: {count:,}; the first: {first['source']}: {first['reason']}. "


def _check_known_classes(data: str, task: str, ingested: IngestedSet) -> None:
    """Raise ConfigError if labels may leave classes open and those of all training images leave the same one open."""
    import tasks
    from pipeline.stores.labels import read_labels

    space = ingested.spaces[task]
    label, unknown = tasks.label(space), set(space.classes)
    for name in ingested.shard_names("train") if label.partial_columns else []:
        table = read_labels(ingested.true_labels(task, "train", name), list(label.partial_columns))
        unknown -= {name for name, known in zip(space.classes, label.known_classes(table), strict=True) if known}
    if label.partial_columns and unknown:
        named = ", ".join(name for name in space.classes if name in unknown)
        raise ConfigError(
            f"no training image of the set {data!r} says whether it shows {named}, which can't be learned: label some "
            "of them for it, or leave it out of the set's classes."
        )


def _has_training_image(name: str, task: str, ingested: IngestedSet) -> bool:
    """Return True if there is an image to train on; the set's files are read only if its counts can't tell."""
    held_out = sum(ingested.counts.get(f"images.{split}", 0) for split in ingested.splits if split != "train")
    return ingested.counts.get(f"labels.{task}.train", 0) > held_out or len(training_images(name, task, ingested)) > 0


def check_required_labels(config: Mapping[str, Any], inputs: Inputs) -> None:
    """Raise ConfigError as `check_labels` does, or if no held-out labels can tell what `require` asks."""
    from ingest.dataset import IngestedSet
    from ingest.true_labels import true_label_dataset
    from ingest.validation import check_measurable

    check_labels(config, inputs)
    head, data, task = config["name"], config["teacher"]["data"], config["teacher"]["task"]
    ingested = IngestedSet(inputs[f"data.{data}"])
    split = ingested.held_out_split("val", task)
    if split is None:
        raise ConfigError(
            f"require: the set {data!r} has no held-out image with a label for {task!r} to measure on: give it a split "
            "'val' or 'test', or leave require out."
        )
    images = true_label_dataset(ingested, split, {head: task})
    check_measurable(images, ingested.spaces[task], f"require: the set {data!r}, split {split!r}", head)
