"""From libraries to batches: a seeded order, and threads that keep batches ready.

Everything about position `p` of the training stream - which image, which crop - depends on (seed, p) alone. A run
that is resumed at step s therefore sees what an undisturbed one sees, without any loader state.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import ImageDataset, ImageSample
from pipeline.data.prefetch import PrefetchedStream
from pipeline.data.stream import cut
from pipeline.recipe.augment import AugmentConfig
from pipeline.stores.labels import Value

Collate = Callable[[Sequence[Value]], Any]


@dataclasses.dataclass
class Batch:
    """images (B, 3, S, S) uint8; keys; per head {"rows": (n,) positions in the batch that have a label, "target"}."""

    images: Tensor
    keys: list[str]
    targets: dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a stream of batches is made of. `slots`: which of a batch's images this process takes, None for all."""

    size: int
    batch: int
    seed: int
    augment: AugmentConfig
    threads: int = 2
    slots: range | None = None


class Samples:
    """Views that were read and drawn, to be put into as many batches as memory asks for."""

    def __init__(self, samples: Sequence[ImageSample], collate: Mapping[str, Collate]) -> None:
        self.samples, self.collate = samples, collate

    @property
    def keys(self) -> list[str]:
        return [sample.key for sample in self.samples]

    def cut(self, pieces: int) -> list[Batch]:
        """All of them in order as so many batches, whose sizes differ by one at most."""
        return [collate_samples(self.samples[run], self.collate) for run in cut(len(self.samples), pieces)]


class Loader:
    """An endless stream of training batches, or of one process's share of each, from any step on."""

    def __init__(self, dataset: ImageDataset, collate: Mapping[str, Collate], config: LoaderConfig) -> None:
        self.dataset, self.collate, self.config = dataset, collate, config
        self.slots = range(config.batch) if config.slots is None else config.slots
        self._supply = PrefetchedStream(self._tasks, lambda samples, _: Samples(samples, self.collate), config.threads)

    @property
    def waited(self) -> float:
        """Seconds the consumer has waited for samples so far."""
        return self._supply.waited

    def batch(self, step: int) -> Batch:
        """The share of batch number `step`, made now."""
        return collate_samples([self._sample(step, slot) for slot in self.slots], self.collate)

    def _sample(self, step: int, slot: int) -> ImageSample:
        config, count = self.config, len(self.dataset)
        position = step * config.batch + slot
        epoch, place = divmod(position, count)
        index = int(self.dataset.order(config.seed, epoch)[place])
        return self.dataset.sample(index, config.size, config.augment, (config.seed, position))

    def _tasks(self, step: int) -> list[Callable[[], ImageSample]]:
        return [functools.partial(self._sample, step, slot) for slot in self.slots]

    def stream(self, start: int) -> Iterator[Samples]:
        """Shares from step `start` on, some of them in the making on `threads` threads."""
        return self._supply.stream(start)


def stacked(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Images (S, S, 3) uint8 each -> (B, 3, S, S)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def collate_samples(samples: Sequence[ImageSample], collate: Mapping[str, Collate]) -> Batch:
    """Samples -> batch; each head gets the labels of the images that have one."""
    images = stacked([sample.image for sample in samples])
    targets = {}
    for head, function in collate.items():
        rows = [row for row, sample in enumerate(samples) if head in sample.values]
        if rows:
            values = [samples[row].values[head] for row in rows]
            targets[head] = {"rows": torch.tensor(rows), "target": function(values)}
    return Batch(images, [sample.key for sample in samples], targets)
