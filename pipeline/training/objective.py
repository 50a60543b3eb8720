"""The input of the training loop: an objective, the images to learn from, and a plan of the training."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.data.stream import BatchStream
from pipeline.recipe.base import FitConfig
from pipeline.training.validation import Validation


class Objective(nn.Module, ABC):
    """A network with its losses, which `fit` trains.

    A step's batch comes in microbatches, perhaps in several processes. Losses are means over labels or pixels, of which
    one microbatch may have many and another none: each contributes by its share of them, so that gradients add up to
    those of the whole batch.

        def amounts(self, batch): return {"images": len(batch.keys)}

        def forward(self, batch, shares):
            loss = shares["images"] * cross_entropy(self.network(batch.images), batch.classes)  # a mean over images
            return loss, {"cross_entropy": loss.detach()}
    """

    communicates: bool = False
    """Its passes exchange something with those of other processes (`Collectives`), each of which then makes as many."""

    def restored_buffers(self) -> list[Tensor]:
        """Return the buffers that a pass changes, and that are restored before it is tried again with fewer images."""
        return list(self.buffers())

    @property
    def observes(self) -> bool:
        """True if it has to `observe` the losses of each step before the next one: a GPU then waits for them."""
        return False

    def observe(self, losses: Mapping[str, float]) -> None:
        """Look at the losses of a step that was taken: their means over the whole batch, in all processes, by name."""

    @abstractmethod
    def amounts(self, batch: Any) -> Mapping[str, float]:
        """Count, by name, what losses are means over: the images, labels or known pixels of a microbatch."""

    @abstractmethod
    def forward(self, batch: Any, shares: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this microbatch's part of the loss to minimise, a scalar, and for the log of its terms, detached.

        Args:
            shares: by name, how much of the whole step's amount is in this microbatch, in [0, 1]; 0 where the step has
                none. The part of a mean over the step is the share times the mean over the microbatch.
        """


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """The work of one call of `fit`."""

    name: str
    """For progress lines and errors."""
    objective: Objective
    stream: BatchStream
    steps: int
    """Optimiser steps."""
    out: Path
    """The step's folder: gets the state and the log."""
    config: FitConfig
    seed: int
    """With the step, decides what the forward passes draw at random."""
    validation: Validation | None = None
    """How it is measured on the way; None for not."""
