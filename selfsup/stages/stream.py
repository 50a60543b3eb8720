"""Batches of views, drawn on threads: an image is decoded once for all its views; seed and step decide the draws."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.augment import seeded_generator
from pipeline.data.dataset import ImageDataset
from pipeline.data.loader import stack_images
from pipeline.data.prefetch import PrefetchedStream, prefetch
from pipeline.data.stream import split_evenly
from pipeline.steps import ranks
from selfsup.components.method import Position, ViewKind, Views
from selfsup.stages.budget import Budget
from selfsup.stages.crops import draw_views
from selfsup.stages.labelled_sampler import ClassSampler

OTHER_DRAWS_SEED = 11
"""Keeps the draws for labelled images and for a single pass apart from those for the steps' unlabelled images."""


@dataclasses.dataclass
class ImageViews:
    """An image's views (S, S, 3) uint8, by kind, its position in the set, and its class if it is used as labelled."""

    key: str
    views: list[NDArray[np.uint8]]
    index: int
    label: int | None = None


class LocalViews:
    """The views of a step's batch that this process takes, not collated yet."""

    def __init__(self, images: Sequence[ImageViews], position: Position) -> None:
        self.unlabelled = [image for image in images if image.label is None]
        self.labelled = [image for image in images if image.label is not None]
        self.position = position

    @property
    def keys(self) -> list[str]:
        return [image.key for image in self.unlabelled]

    def split(self, count: int) -> list[Views]:
        """Collate into `count` microbatches; one with labelled images has two or more classes, each complete."""
        present = list(dict.fromkeys(image.label for image in self.labelled))
        class_runs = split_evenly(len(present), min(count, max(1, len(present) // 2)))
        runs = split_evenly(len(self.unlabelled), count)
        batches = []
        for run, class_run in itertools.zip_longest(runs, class_runs, fillvalue=slice(0)):
            classes = set(present[class_run])
            labelled = [image for image in self.labelled if image.label in classes]
            batches.append(collate(self.unlabelled[run], labelled, self.position))
        return batches


def collate(unlabelled: Sequence[ImageViews], labelled: Sequence[ImageViews], position: Position) -> Views:
    """Stack the views of some images into a batch, uint8."""
    views = [stack_images([image.views[kind] for image in unlabelled]) for kind in range(len(unlabelled[0].views))]
    index = torch.tensor([image.index for image in unlabelled])
    labelled_views = stack_images([image.views[0] for image in labelled]) if labelled else None
    classes = torch.tensor([image.label for image in labelled]) if labelled else None
    return Views([image.key for image in unlabelled], views, index, labelled_views, classes, *position)


class ViewStream:
    """The views of a stage, step by step: this process's share of every step."""

    def __init__(
        self, dataset: ImageDataset, kinds: Sequence[ViewKind], budget: Budget, sampler: ClassSampler | None, seed: int
    ) -> None:
        self.dataset, self.kinds, self.budget, self.sampler, self.seed = dataset, kinds, budget, sampler, seed

    def prefetched(self, threads: int) -> PrefetchedStream[ImageViews, LocalViews]:
        """Return the stream that `fit` trains on."""
        return PrefetchedStream(
            self.sample_makers, lambda images, step: LocalViews(images, self._position(step)), threads
        )

    def _position(self, step: int) -> Position:
        return Position(step, self.budget.steps, self.budget.unlabelled_before(step) // len(self.dataset))

    def sample_makers(self, step: int) -> list[Callable[[], ImageViews]]:
        """Return functions that draw the views of a step, one image each: unlabelled images, then labelled ones."""
        makers = [self._unlabelled_maker(step, slot) for slot in ranks.share(self.budget.unlabelled(step))]
        if self.sampler and step < self.budget.labelled_until:
            labelled = self.sampler.draw(step)
            makers += [self._labelled_maker(step, slot, *labelled[slot]) for slot in ranks.share(len(labelled))]
        return makers

    def _unlabelled_maker(self, step: int, slot: int) -> Callable[[], ImageViews]:
        position = self.budget.unlabelled_before(step) + slot
        epoch, offset = divmod(position, len(self.dataset))

        def draw() -> ImageViews:
            index = int(self.dataset.order(self.seed, epoch)[offset])
            return self._draw(index, self.kinds, (self.seed, position))

        return draw

    def _labelled_maker(self, step: int, slot: int, index: int, label: int) -> Callable[[], ImageViews]:
        seed = (self.seed, OTHER_DRAWS_SEED, step, slot)
        return lambda: dataclasses.replace(self._draw(index, self.kinds[:1], seed), label=label)

    def _draw(self, index: int, kinds: Sequence[ViewKind], seed: tuple[int, ...]) -> ImageViews:
        key, data = self.dataset.read(index)
        return ImageViews(key, draw_views(data, kinds, seeded_generator(*seed)), index)

    def single_pass(self, size: int, threads: int) -> Generator[Views]:
        """Yield every image once, in batches of `size` or more, none twice as large, which threads prefetch.

        Fewer images than `size` are one batch.
        """

        def draw(index: int) -> ImageViews:
            return self._draw(index, self.kinds, (self.seed, OTHER_DRAWS_SEED, index))

        with contextlib.closing(prefetch(draw, range(len(self.dataset)), threads, max(size, threads))) as images:
            for part in split_evenly(len(self.dataset), max(1, len(self.dataset) // size)):
                batch = list(itertools.islice(images, part.stop - part.start))
                # step 1, an ordinary one: at step 0 the objective also measures features, which would be timed, too
                yield collate(batch, [], Position(1, self.budget.steps, 0))
