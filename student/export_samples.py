"""Samples for exports: every image that the student learns from, with the winning labels as they are stored, and the
held-out images of the pool's sets with their true labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ingest.dataset import IngestedSet
from ingest.label_precedence import TrueLabelIndex
from ingest.true_labels import drop_unlabelled
from pipeline.data.dataset import CACHE_SHARE, DatasetShard, ImageDataset
from pipeline.data.prefetch import prefetch
from pipeline.export import TRAIN, VAL, ExportSample
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs
from student.dataset import StudentHead, student_shards

PREFETCH_IMAGES = 32
HELD_OUT = ("val", "test")
"""Splits of a set that make the validation split of an export."""


class _Position(NamedTuple):
    split: str
    dataset: ImageDataset
    place: int
    """Index in the dataset."""


def labelled_samples(config: StudentConfig, heads: Mapping[str, StudentHead], inputs: Inputs) -> Iterator[ExportSample]:
    """Yield the images of `student_dataset` for these heads, in the pool's order, one shard in memory at a time.

    Then come those of `held_out_shards`, as the split VAL.
    """
    splits = {TRAIN: student_shards(config, heads, inputs), VAL: held_out_shards(heads, inputs)}
    positions = itertools.chain.from_iterable(_positions(split, shards) for split, shards in splits.items())
    return prefetch(_read_sample, positions, inputs.runtime.threads, PREFETCH_IMAGES)


def count_images(inputs: Inputs) -> int:
    """Return the number of images that `labelled_samples` yields at most."""
    counts = [ingested.counts.get(f"images.{split}", 0) for ingested in _pooled(inputs).values() for split in HELD_OUT]
    return int(inputs["pool"].counts["images"]) + sum(counts)


def image_channels(inputs: Inputs) -> int:
    """Return the channels of the pool's images."""
    return next(ingested.channels for ingested in _pooled(inputs).values())


def _pooled(inputs: Inputs) -> dict[str, IngestedSet]:
    """Return the sets of the pool by name."""
    return {name: IngestedSet(inputs[f"data.{name}"]) for name in inputs["pool"].manifest["config"]["pool"]}


def held_out_shards(heads: Mapping[str, StudentHead], inputs: Inputs) -> Iterator[DatasetShard]:
    """Yield the images of the splits val and test of the pool's sets, each once, with their true labels by head.

    A head has the labels of every set of the pool whose labels mean the same as its own.
    """
    sets = _pooled(inputs)
    indices = {name: TrueLabelIndex(name, ingested, HELD_OUT) for name, ingested in sets.items()}
    seen: set[str] = set()
    for name, split in itertools.product(sets, HELD_OUT):
        for shard in sets[name].images(split).shards:
            label_sources = {
                head.teacher: tuple(
                    source
                    for other in dict.fromkeys([name, *sets])
                    if sets[other].spaces.get(head.space.task) == head.space
                    for source in indices[other].sources(head.space, name, shard, split)
                )
                for head in heads.values()
            }
            rows = np.flatnonzero([key not in seen for key in shard.keys])
            seen.update(shard.keys)
            held = {head: each for head, each in label_sources.items() if each}
            yield DatasetShard(shard, rows, held, name, sets[name].channels)


def _positions(split: str, shards: Iterator[DatasetShard]) -> Iterator[_Position]:
    for shard in shards:
        dataset = ImageDataset([drop_unlabelled(shard)])
        yield from (_Position(split, dataset, index) for index in range(len(dataset)))


def _read_sample(position: _Position) -> ExportSample:
    split, dataset, index = position
    number, row = dataset.locate(index)
    shard = dataset.shards[number]
    image = shard.images.row(row)
    shard.images.download(CACHE_SHARE)
    labels = dataset.labels(index)
    return ExportSample(
        image.key,
        shard.images.read_original(row, shard.dataset),
        image.suffix,
        (image.width, image.height),
        image.source,
        {head: value for head, (value, _) in labels.items()},
        {head: source.origin for head, (_, source) in labels.items() if source.origin},
        shard.dataset,
        split,
        channels=shard.channels,
    )
