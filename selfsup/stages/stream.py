"""Batches of crops: decoded once for all views of an image, drawn on threads, the same for the same seed and step."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import ranks
from pipeline.ahead import ahead
from pipeline.augment import generator
from pipeline.job import cut
from pipeline.loader import Library, stacked
from pipeline.supply import Supply
from selfsup.parts.method import Crop
from selfsup.stages.crops import views_of
from selfsup.stages.labelled import ClassSampler

SUPERVISED = 11
"""Sets the draws for labelled images apart."""


@dataclasses.dataclass
class Drawn:
    """An image's crops (S, S, 3) uint8; its number in the set, and its class if it is there for its label."""

    key: str
    crops: list[NDArray[np.uint8]]
    index: int
    label: int | None = None


@dataclasses.dataclass
class CropBatch:
    """What a pass sees: by crop (B, 3, S, S) uint8, the images' numbers (B,); labelled crops (N, 3, S, S) and their
    classes (N,), None where there are none; the step, and how often all images were seen before it.
    """

    keys: list[str]
    crops: list[Tensor]
    index: Tensor
    labelled: Tensor | None
    classes: Tensor | None
    step: int
    epoch: int


class Crops:
    """The crops of a step that one process takes, to be put into as many batches as memory asks for."""

    def __init__(self, drawn: Sequence[Drawn], step: int, epoch: int) -> None:
        self.plain = [each for each in drawn if each.label is None]
        self.labelled = [each for each in drawn if each.label is not None]
        self.step, self.epoch = step, epoch

    @property
    def keys(self) -> list[str]:
        return [each.key for each in self.plain]

    def cut(self, pieces: int) -> list[CropBatch]:
        """All of them as so many batches; of the labelled ones, two whole classes or more in each that has any."""
        present = list(dict.fromkeys(each.label for each in self.labelled))
        shares = cut(len(present), min(pieces, max(1, len(present) // 2)))
        batches = []
        for run, classes in itertools.zip_longest(cut(len(self.plain), pieces), shares, fillvalue=slice(0)):
            chosen = set(present[classes])
            labelled = [each for each in self.labelled if each.label in chosen]
            batches.append(collate(self.plain[run], labelled, (self.step, self.epoch)))
        return batches


def collate(plain: Sequence[Drawn], labelled: Sequence[Drawn], when: tuple[int, int]) -> CropBatch:
    """Images and their crops -> batch, `when` = (step, epoch)."""
    crops = [stacked([each.crops[number] for each in plain]) for number in range(len(plain[0].crops))]
    index = torch.tensor([each.index for each in plain])
    shown = stacked([each.crops[0] for each in labelled]) if labelled else None
    classes = torch.tensor([each.label for each in labelled]) if labelled else None
    return CropBatch([each.key for each in plain], crops, index, shown, classes, *when)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Images in a step. `batch`: unlabelled ones, if no others are there; `labelled` beside fewer unlabelled ones, so
    that there are as many views of the large kind in all, until step `until`.
    """

    batch: int
    labelled: int = 0
    until: int = 0

    @property
    def beside(self) -> int:
        """Unlabelled images beside labelled ones: 2u + l = 2b."""
        return (2 * self.batch - self.labelled) // 2

    def plain(self, step: int) -> int:
        """Unlabelled images in a step."""
        return self.beside if step < self.until else self.batch

    def before(self, step: int) -> int:
        """Unlabelled images in all steps before."""
        return self.beside * min(step, self.until) + self.batch * max(0, step - self.until)


class ViewStream:
    """The crops of a stage, step by step."""

    def __init__(
        self, library: Library, crops: Sequence[Crop], budget: Budget, sampler: ClassSampler | None, seed: int
    ) -> None:
        self.library, self.crops, self.budget, self.sampler, self.seed = library, crops, budget, sampler, seed

    def supply(self, threads: int) -> Supply[Drawn, Crops]:
        """What `fit` takes its shares from."""
        return Supply(self.tasks, lambda drawn, step: Crops(drawn, step, self.epoch(step)), threads)

    def epoch(self, step: int) -> int:
        """How often all images were seen before a step."""
        return self.budget.before(step) // len(self.library)

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
        epoch, place = divmod(position, len(self.library))

        def draw() -> Drawn:
            index = int(self.library.order(self.seed, epoch)[place])
            return self._draw(index, self.crops, (self.seed, position))

        return draw

    def _labelled(self, step: int, slot: int, index: int, label: int) -> Callable[[], Drawn]:
        seed = (self.seed, SUPERVISED, step, slot)
        return lambda: dataclasses.replace(self._draw(index, self.crops[:1], seed), label=label)

    def _draw(self, index: int, crops: Sequence[Crop], seed: tuple[int, ...]) -> Drawn:
        key, data = self.library.read(index)
        return Drawn(key, views_of(data, crops, generator(*seed)), index)

    def once(self, size: int, threads: int) -> Generator[CropBatch]:
        """Every image once, in batches; while one is looked at, threads make the next one ready."""
        numbers = range(len(self.library))
        with contextlib.closing(ahead(self._seen, numbers, threads, max(size, threads))) as drawn:
            while batch := list(itertools.islice(drawn, size)):
                yield collate(batch, [], (1, 0))

    def _seen(self, index: int) -> Drawn:
        return self._draw(index, self.crops, (self.seed, SUPERVISED, index))
