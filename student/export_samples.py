"""Samples for exports: every image that the student learns from, with the winning labels as they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ingest.true_labels import drop_unlabelled
from pipeline.data.dataset import ImageDataset
from pipeline.data.prefetch import prefetch
from pipeline.export import ExportSample
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs
from student.dataset import StudentHead, student_shards

PREFETCH_IMAGES = 32


def labelled_samples(config: StudentConfig, heads: Mapping[str, StudentHead], inputs: Inputs) -> Iterator[ExportSample]:
    """Yield the images of `student_dataset` for these heads, in the pool's order, one shard in memory at a time."""
    positions = (
        (dataset, position)
        for shard in student_shards(config, heads, inputs)
        for dataset in [ImageDataset([drop_unlabelled(shard)])]
        for position in range(len(dataset))
    )
    return prefetch(_read_sample, positions, inputs.runtime.threads, PREFETCH_IMAGES)


def _read_sample(item: tuple[ImageDataset, int]) -> ExportSample:
    dataset, position = item
    number, row = dataset.locate(position)
    image = dataset.shards[number].images.row(row)
    _, data = dataset.read(position)
    size = (image.width, image.height)
    return ExportSample(image.key, data, image.suffix, size, image.source, dataset.values(position))
