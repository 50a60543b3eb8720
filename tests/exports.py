"""Exports of the tiny world, and the samples that they have to contain: the dataset that its student learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tasks
from pipeline.data.dataset import ImageDataset
from pipeline.export import TRAIN, ExportSample, with_names, write_export
from pipeline.recipe.student import StudentConfig
from student.dataset import StudentHead, heads_of, student_dataset
from student.export_samples import labelled_samples

if TYPE_CHECKING:
    from tests.conftest import World

CONFIG = StudentConfig(loss_weights={"gabor": 1})


def export(world: World, form: str, out: Path, heads: Sequence[str] = (), **student: Any) -> dict[str, Any]:
    """Write the world's training labels in a form, images named by their keys, and return the summary."""
    config = CONFIG.model_copy(update=student)
    selected = _select_heads(world, config, heads)
    labels = {name: tasks.label(head.space) for name, head in selected.items()}
    samples = (each for each in labelled_samples(config, selected, world.inputs("student")) if each.split == TRAIN)
    return write_export(form, out, labels, samples, {"recipe": "world"})


def export_splits(world: World, form: str, out: Path, heads: Sequence[str] = ()) -> dict[str, Any]:
    """Write the world's labels as the command does, and return the summary."""
    selected = _select_heads(world, CONFIG, heads)
    labels = {name: tasks.label(head.space) for name, head in selected.items()}
    samples = with_names(labelled_samples(CONFIG, selected, world.inputs("student")), "source")
    return write_export(form, out, labels, samples, {})


def dataset(world: World, heads: Sequence[str] = (), **student: Any) -> ImageDataset:
    """Return the dataset that the world's student learns from."""
    config = CONFIG.model_copy(update=student)
    return student_dataset(config, _select_heads(world, config, heads), world.inputs("student"))


def _select_heads(world: World, config: StudentConfig, heads: Sequence[str]) -> dict[str, StudentHead]:
    every = heads_of(config, world.inputs("student"))
    return {name: head for name, head in every.items() if not heads or name in heads}


def samples(world: World, heads: Sequence[str] = (), **student: Any) -> dict[str, ExportSample]:
    """Return the samples of the student's dataset by key, made by its indices rather than as an export makes them."""
    by_key = {}
    images = dataset(world, heads, **student)
    for index in range(len(images)):
        number, row = images.locate(index)
        image = images.shards[number].images.row(row)
        key, data = images.read(index)
        size = (image.width, image.height)
        by_key[key] = ExportSample(key, data, image.suffix, size, image.source, images.values(index))
    assert len(by_key) == len(images)
    return by_key
