"""Batches of views: decoded once for all views of an image, drawn on threads, the same for the same seed and step."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence, Set

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingest.pool import pool_keys, pool_shards
from pipeline.data.augment import generator
from pipeline.data.dataset import DatasetShard, ImageDataset, LabelSource
from pipeline.data.loader import stacked
from pipeline.data.prefetch import PrefetchedStream, prefetch
from pipeline.data.stream import cut
from pipeline.errors import ConfigError
from pipeline.recipe.stage import StageConfig
from pipeline.steps import ranks
from pipeline.steps.artifact import Inputs
from selfsup.components.method import ViewKind
from selfsup.stages.budget import Budget
from selfsup.stages.crops import views_of
from selfsup.stages.labelled_sampler import ClassSampler

SUPERVISED = 11
"""Sets the draws for labelled images apart."""


@dataclasses.dataclass
class Drawn:
    """An image's views (S, S, 3) uint8, by kind; its number in the set, and its class if it is there for its label."""

    key: str
    views: list[NDArray[np.uint8]]
    index: int
    label: int | None = None


@dataclasses.dataclass
class ViewBatch:
    """What a pass sees: `unlabelled` by kind (B, 3, S, S) uint8, the images' numbers (B,); `labelled` (N, 3, S, S) and
    their classes (N,), None where there are none; the step, and how often all images were seen before it.
    """

    keys: list[str]
    unlabelled: list[Tensor]
    index: Tensor
    labelled: Tensor | None
    classes: Tensor | None
    step: int
    epoch: int


class ViewShare:
    """The views of a step that one process takes, to be put into as many batches as memory asks for."""

    def __init__(self, drawn: Sequence[Drawn], step: int, epoch: int) -> None:
        self.plain = [each for each in drawn if each.label is None]
        self.labelled = [each for each in drawn if each.label is not None]
        self.step, self.epoch = step, epoch

    @property
    def keys(self) -> list[str]:
        return [each.key for each in self.plain]

    def cut(self, pieces: int) -> list[ViewBatch]:
        """All of them as so many batches; of the labelled ones, two whole classes or more in each that has any."""
        present = list(dict.fromkeys(each.label for each in self.labelled))
        shares = cut(len(present), min(pieces, max(1, len(present) // 2)))
        batches = []
        for run, classes in itertools.zip_longest(cut(len(self.plain), pieces), shares, fillvalue=slice(0)):
            chosen = set(present[classes])
            labelled = [each for each in self.labelled if each.label in chosen]
            batches.append(collate(self.plain[run], labelled, (self.step, self.epoch)))
        return batches


def collate(plain: Sequence[Drawn], labelled: Sequence[Drawn], when: tuple[int, int]) -> ViewBatch:
    """Images and their views -> batch, `when` = (step, epoch)."""
    unlabelled = [stacked([each.views[kind] for each in plain]) for kind in range(len(plain[0].views))]
    index = torch.tensor([each.index for each in plain])
    shown = stacked([each.views[0] for each in labelled]) if labelled else None
    classes = torch.tensor([each.label for each in labelled]) if labelled else None
    return ViewBatch([each.key for each in plain], unlabelled, index, shown, classes, *when)


class ViewStream:
    """The views of a stage, step by step."""

    def __init__(
        self, dataset: ImageDataset, kinds: Sequence[ViewKind], budget: Budget, sampler: ClassSampler | None, seed: int
    ) -> None:
        self.dataset, self.kinds, self.budget, self.sampler, self.seed = dataset, kinds, budget, sampler, seed

    def supply(self, threads: int) -> PrefetchedStream[Drawn, ViewShare]:
        """What `fit` takes its shares from."""
        return PrefetchedStream(self.tasks, lambda drawn, step: ViewShare(drawn, step, self.epoch(step)), threads)

    def epoch(self, step: int) -> int:
        """How often all images were seen before a step."""
        return self.budget.before(step) // len(self.dataset)

    def tasks(self, step: int) -> list[Callable[[], Drawn]]:
        """This process's share of a step, an image each."""
        plain = self.budget.plain(step)
        found: list[Callable[[], Drawn]] = [self._plain(step, slot) for slot in ranks.share(plain)]
        if self.sampler and step < self.budget.until:
            drawn = self.sampler.step(step)
            found += [self._labelled(step, slot, *drawn[slot]) for slot in ranks.share(len(drawn))]
        return found

    def _plain(self, step: int, slot: int) -> Callable[[], Drawn]:
        position = self.budget.before(step) + slot
        epoch, place = divmod(position, len(self.dataset))

        def draw() -> Drawn:
            index = int(self.dataset.order(self.seed, epoch)[place])
            return self._draw(index, self.kinds, (self.seed, position))

        return draw

    def _labelled(self, step: int, slot: int, index: int, label: int) -> Callable[[], Drawn]:
        seed = (self.seed, SUPERVISED, step, slot)
        return lambda: dataclasses.replace(self._draw(index, self.kinds[:1], seed), label=label)

    def _draw(self, index: int, kinds: Sequence[ViewKind], seed: tuple[int, ...]) -> Drawn:
        key, data = self.dataset.read(index)
        return Drawn(key, views_of(data, kinds, generator(*seed)), index)

    def once(self, size: int, threads: int) -> Generator[ViewBatch]:
        """Every image once, in batches; while one is looked at, threads make the next one ready."""
        numbers = range(len(self.dataset))
        with contextlib.closing(prefetch(self._seen, numbers, threads, max(size, threads))) as drawn:
            while batch := list(itertools.islice(drawn, size)):
                yield collate(batch, [], (1, 0))

    def _seen(self, index: int) -> Drawn:
        return self._draw(index, self.kinds, (self.seed, SUPERVISED, index))


FEWEST = 2
"""Images that there have to be."""


NOTHING: Mapping[str, tuple[LabelSource, ...]] = {}


def images_of(stage: StageConfig, inputs: Inputs, seed: int) -> ImageDataset:
    """The images of the stage's pool, or the stage's share of them. ConfigError if they are fewer than two."""
    pool = inputs[f"pool.{stage.name}"]
    shards = [DatasetShard(shard, rows, NOTHING) for _, shard, rows in pool_shards(pool, inputs.of_kind("data"))]
    if stage.share < 1:
        chosen = pool_keys(pool, stage.share, seed)
        shards = [_subset(shard, chosen) for shard in shards]
    dataset = ImageDataset(shards)
    if len(dataset) < FEWEST:
        raise ConfigError(f"{len(dataset)} images to train on in {', '.join(stage.data)}: {FEWEST} or more are needed.")
    return dataset


def _subset(shard: DatasetShard, chosen: Set[str]) -> DatasetShard:
    """The shelf with the images of these keys alone."""
    kept = np.array([shard.images.keys[row] in chosen for row in shard.rows], bool)
    return dataclasses.replace(shard, rows=shard.rows[kept])
