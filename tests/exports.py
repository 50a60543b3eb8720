"""Exports of the tiny world, and what they have to hold: the labels of the library that its student learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tasks
from pipeline.data.dataset import ImageDataset
from pipeline.export import ExportSample, write
from pipeline.recipe.student import StudentConfig
from student.dataset import heads_of, join
from student.export_samples import labelled_samples

if TYPE_CHECKING:
    from tests.conftest import World

CONFIG = StudentConfig(loss_weights={"gabor": 1})


def export(world: World, form: str, out: Path, heads: Sequence[str] = (), **student: Any) -> dict[str, Any]:
    """Write the world's labels in a form; returns its summary."""
    config = CONFIG.model_copy(update=student)
    inputs = world.inputs("student")
    found = {name: head for name, head in heads_of(config, inputs).items() if not heads or name in heads}
    labels = {name: tasks.label(head.space) for name, head in found.items()}
    return write(form, out, labels, labelled_samples(config, found, inputs), {"recipe": "world"})


def dataset(world: World, heads: Sequence[str] = (), **student: Any) -> ImageDataset:
    """What the student of the world learns from."""
    config = CONFIG.model_copy(update=student)
    inputs = world.inputs("student")
    found = {name: head for name, head in heads_of(config, inputs).items() if not heads or name in heads}
    return join(config, found, inputs)


def samples(world: World, heads: Sequence[str] = (), **student: Any) -> dict[str, ExportSample]:
    """The same by key, with the images' own bytes; made from the library's positions."""
    found = {}
    whole = dataset(world, heads, **student)
    for index in range(len(whole)):
        number, row = whole.locate(index)
        about = whole.shards[number].images.row(row)
        key, data = whole.read(index)
        size = (about.width, about.height)
        found[key] = ExportSample(key, data, about.suffix, size, about.source, whole.values(index))
    assert len(found) == len(whole)
    return found
