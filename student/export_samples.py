"""What the student learns from, image by image: the labels that win, at the recipe's thresholds, as they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ingest.true_labels import drop_unlabelled
from pipeline.data.dataset import ImageDataset
from pipeline.data.prefetch import prefetch
from pipeline.export import ExportSample
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs
from student.dataset import StudentHead, student_shards

AHEAD = 32
"""Images read before they are asked for."""


def labelled_samples(config: StudentConfig, heads: Mapping[str, StudentHead], inputs: Inputs) -> Iterator[ExportSample]:
    """Every image of the pool with a label of any of these heads, in the pool's order: what `join` holds, one shard in
    memory at a time.
    """
    places = (
        (dataset, position)
        for shard in student_shards(config, heads, inputs)
        for dataset in [ImageDataset([drop_unlabelled(shard)])]
        for position in range(len(dataset))
    )
    return prefetch(_sample, places, inputs.runtime.threads, AHEAD)


def _sample(place: tuple[ImageDataset, int]) -> ExportSample:
    dataset, position = place
    number, row = dataset.locate(position)
    about = dataset.shards[number].images.row(row)
    _, data = dataset.read(position)
    size = (about.width, about.height)
    return ExportSample(about.key, data, about.suffix, size, about.source, dataset.values(position))
