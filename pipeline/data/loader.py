"""Training batches from an image dataset: in a seeded order, with threads that prepare samples ahead.

Everything about position `p` of the training stream, which image and which crop, depends on (seed, p) alone. A run that
is resumed at step s therefore sees what an undisturbed one sees, without any loader state.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import ValidSizes
from pipeline.data.dataset import ImageDataset, ImageSample
from pipeline.data.prefetch import PrefetchedStream
from pipeline.data.stream import split_evenly
from pipeline.recipe.augment import AugmentConfig, Resize
from pipeline.stores.labels import Value

WEIGHTS = "weights"
"""The entry of a target with what each image's label counts in the loss, float32 (n,) in [0, 1]; all 1 without it."""
Collate = Callable[[Sequence[Value], ValidSizes], Any]
"""Turns the labels of a head, and the valid regions of their images, into its target."""


@dataclasses.dataclass
class Batch:
    """Images and targets as tensors."""

    images: Tensor
    """(B, 3, S, S) uint8, or (B, C, S, S) float32 of sets of C channels."""
    keys: list[str]
    targets: dict[str, dict[str, Any]]
    """By head: `rows`, the positions (n,) in the batch that have a label, and `target`."""
    valid: Tensor | None = None
    """(width, height) of each image's valid region, int64 (B, 2), in pixels; None if nothing is padded."""


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """Size, seed, augmentation and threads of a loader's batches."""

    size: int
    """Side of the square images, pixels."""
    resize: Resize
    batch: int
    """Images per step, those of all processes."""
    seed: int
    augment: AugmentConfig
    threads: int = 2
    slots: range | None = None
    """Which of a batch's images this process takes; None for all."""


def to_float(images: Tensor) -> Tensor:
    """Return pictures, uint8, as float32 in [0, 1]; bands, which are float32, stay as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


class LocalSamples:
    """Samples of one process for one step, to be collated into as many microbatches as memory demands."""

    def __init__(self, samples: Sequence[ImageSample], collate: Mapping[str, Collate]) -> None:
        self.samples, self.collate = samples, collate

    @property
    def keys(self) -> list[str]:
        return [sample.key for sample in self.samples]

    def split(self, count: int) -> list[Batch]:
        """Collate the samples, in order, into `count` microbatches of nearly equal size."""
        return [collate_samples(self.samples[run], self.collate) for run in split_evenly(len(self.samples), count)]


class BatchLoader(PrefetchedStream[ImageSample, LocalSamples]):
    """An endless stream of training batches, or of one process's part of each, from any step on."""

    def __init__(self, dataset: ImageDataset, collate: Mapping[str, Collate], config: LoaderConfig) -> None:
        self.dataset, self.collate, self.config = dataset, collate, config
        self.slots = range(config.batch) if config.slots is None else config.slots
        super().__init__(self._sample_makers, lambda samples, _: LocalSamples(samples, collate), config.threads)

    def batch(self, step: int) -> Batch:
        """Return the local batch of one step, made now and as a whole."""
        return collate_samples([self._sample(step, slot) for slot in self.slots], self.collate)

    def _sample_makers(self, step: int) -> list[Callable[[], ImageSample]]:
        return [functools.partial(self._sample, step, slot) for slot in self.slots]

    def _sample(self, step: int, slot: int) -> ImageSample:
        config = self.config
        position = step * config.batch + slot
        epoch, offset = divmod(position, len(self.dataset))
        index = int(self.dataset.order(config.seed, epoch)[offset])
        return self.dataset.sample(index, config.size, config.resize, config.augment, (config.seed, position))


def stack_images(images: Sequence[NDArray[Any]]) -> Tensor:
    """Stack images (S, S, C) into a tensor (B, C, S, S)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def collate_samples(samples: Sequence[ImageSample], collate: Mapping[str, Collate]) -> Batch:
    """Collate samples into a batch, in which each head has the targets of the images that have a label for it."""
    images = stack_images([sample.image for sample in samples])
    targets = {}
    for head, function in collate.items():
        rows = [row for row, sample in enumerate(samples) if head in sample.values]
        if rows:
            values, valid = [samples[row].values[head] for row in rows], [samples[row].valid for row in rows]
            target = function(values, valid)
            if any(head in samples[row].weights for row in rows):
                target[WEIGHTS] = torch.tensor([samples[row].weights.get(head, 1.0) for row in rows])
            targets[head] = {"rows": torch.tensor(rows), "target": target}
    sizes = torch.tensor([sample.valid for sample in samples])
    padded = bool((sizes < images.shape[-1]).any())
    return Batch(images, [sample.key for sample in samples], targets, sizes if padded else None)
