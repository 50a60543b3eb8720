"""What the student learns from, image by image: the labels that win, at the recipe's thresholds, as they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ingest.true_labels import labelled
from pipeline.data.dataset import Library
from pipeline.data.prefetch import ahead
from pipeline.export import Sample
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs
from student.dataset import Head, shelves

AHEAD = 32
"""Images read before they are asked for."""


def labelled_samples(config: StudentConfig, heads: Mapping[str, Head], inputs: Inputs) -> Iterator[Sample]:
    """Every image of the pool with a label of any of these heads, in the pool's order: what `join` holds, one shard in
    memory at a time.
    """
    places = (
        (library, position)
        for shelf in shelves(config, heads, inputs)
        for library in [Library([labelled(shelf)])]
        for position in range(len(library))
    )
    return ahead(_sample, places, inputs.runtime.threads, AHEAD)


def _sample(place: tuple[Library, int]) -> Sample:
    library, position = place
    number, row = library.locate(position)
    about = library.shelves[number].images.row(row)
    _, data = library.read(position)
    size = (about.width, about.height)
    return Sample(about.key, data, about.suffix, size, about.source, library.values(position))
