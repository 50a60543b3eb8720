"""Batches of views, drawn on threads: an image is decoded once for all its views; seed and step decide the draws."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Sequence
from typing import Any

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
    """An image's views by kind, as `draw_views` makes them, its position in the set, and its class if it is used as
    labelled.
    """

    key: str
    views: list[NDArray[Any]]
    index: int
    label: int | None = None


class LocalViews:
    """The views of a step's batch that this process takes, not collated yet.

    `classes`: those of the labelled images of the step; `fewest`: unlabelled images of the process with the fewest.
    Each process has some of a class's images, and makes as many passes as the others, with the same classes in each.
    """

    def __init__(self, images: Sequence[ImageViews], position: Position, classes: Sequence[int], fewest: int) -> None:
        self.unlabelled = [image for image in images if image.label is None]
        self.labelled = [image for image in images if image.label is not None]
        self.position, self.classes, self.fewest = position, classes, fewest

    @property
    def keys(self) -> list[str]:
        return [image.key for image in self.unlabelled]

    def split(self, count: int) -> list[Views]:
        """Collate into `count` microbatches, or into `fewest` if that is less.

        One with labelled images has two or more classes, each complete, in all processes together.
        """
        count = min(count, self.fewest)
        class_runs = split_evenly(len(self.classes), min(count, max(1, len(self.classes) // 2)))
        runs = split_evenly(len(self.unlabelled), count)
        batches = []
        for run, class_run in itertools.zip_longest(runs, class_runs, fillvalue=slice(0)):
            classes = set(self.classes[class_run])
            labelled = [image for image in self.labelled if image.label in classes]
            batches.append(collate(self.unlabelled[run], labelled if classes else None, self.position))
        return batches


def collate(unlabelled: Sequence[ImageViews], labelled: Sequence[ImageViews] | None, position: Position) -> Views:
    """Stack the views of some images into a batch. `labelled` is empty where other processes alone have some."""
    views = [stack_images([image.views[kind] for image in unlabelled]) for kind in range(len(unlabelled[0].views))]
    index = torch.tensor([image.index for image in unlabelled])
    labelled_views = classes = None
    if labelled is not None:
        labelled_views = stack_images([image.views[0] for image in labelled]) if labelled else views[0][:0]
        classes = torch.tensor([image.label for image in labelled], dtype=torch.int64)
    return Views([image.key for image in unlabelled], views, index, labelled_views, classes, *position)


class ViewStream:
    """The views of a stage, step by step: this process's share of every step."""

    def __init__(
        self, dataset: ImageDataset, kinds: Sequence[ViewKind], budget: Budget, sampler: ClassSampler | None, seed: int
    ) -> None:
        self.dataset, self.kinds, self.budget, self.sampler, self.seed = dataset, kinds, budget, sampler, seed

    def prefetched(self, threads: int) -> PrefetchedStream[ImageViews, LocalViews]:
        """Return the stream that `fit` trains on."""
        return PrefetchedStream(self.sample_makers, self.assemble, threads)

    def assemble(self, images: Sequence[ImageViews], step: int) -> LocalViews:
        """Return this process's part of a step's batch, given the views that its functions drew."""
        classes = list(dict.fromkeys(label for _, label in self._labelled(step)))
        return LocalViews(images, self._position(step), classes, self.budget.unlabelled(step) // ranks.count())

    def _position(self, step: int) -> Position:
        return Position(step, self.budget.steps, self.budget.unlabelled_before(step) // len(self.dataset))

    def sample_makers(self, step: int) -> list[Callable[[], ImageViews]]:
        """Return functions that draw the views of a step, one image each: unlabelled images, then labelled ones."""
        makers = [self._unlabelled_maker(step, slot) for slot in ranks.share(self.budget.unlabelled(step))]
        labelled = self._labelled(step)
        makers += [self._labelled_maker(step, slot, *labelled[slot]) for slot in ranks.share(len(labelled))]
        return makers

    def _labelled(self, step: int) -> list[tuple[int, int]]:
        """Return position and class of the labelled images of a step, those of all processes."""
        return self.sampler.draw(step) if self.sampler and step < self.budget.labelled_until else []

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
        rng, channels = seeded_generator(*seed), self.dataset.channels
        key, views = self.dataset.decode(index, lambda data: draw_views(data, kinds, rng, channels))
        return ImageViews(key, views, index)

    def _draw_once(self, index: int) -> ImageViews:
        """Draw the views of an image for what is no step."""
        return self._draw(index, self.kinds, (self.seed, OTHER_DRAWS_SEED, index))

    def sample(self, count: int) -> Views:
        """Return a batch of so many unlabelled images, to time a pass on: the first ones, again and again if there are
        fewer.
        """
        images = [self._draw_once(index % len(self.dataset)) for index in range(count)]
        # step 1, an ordinary one: at step 0 the objective also measures features, which would be timed, too
        return collate(images, None, Position(1, self.budget.steps, 0))

    def single_pass(self, size: int, threads: int) -> Generator[Views]:
        """Yield every image once, in batches of `size` or more, none twice as large, which threads prefetch.

        Fewer images than `size` are one batch. Of each batch this process takes its share.
        """
        parts = split_evenly(len(self.dataset), max(1, len(self.dataset) // size))
        shares = [[part.start + slot for slot in ranks.share(part.stop - part.start)] for part in parts]
        indices = itertools.chain.from_iterable(shares)
        with contextlib.closing(prefetch(self._draw_once, indices, threads, max(size, threads))) as images:
            for share in shares:
                yield collate(list(itertools.islice(images, len(share))), None, Position(0, self.budget.steps, 0))
