"""What the training loop is given: an objective, the images it learns from, and how long and how to train."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.data.stream import Stream
from pipeline.recipe.base import FitConfig


class Objective(nn.Module, ABC):
    """What is trained. A step's batch may come in pieces, to several processes, whose parts of the loss add up."""

    @abstractmethod
    def amounts(self, batch: Any) -> Mapping[str, float]:
        """By name, how much there is in a batch of what losses are means over: images, labels, known pixels."""

    @abstractmethod
    def forward(self, batch: Any, shares: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """This piece's part of the loss to minimise, a scalar, and of the losses it is made of, for the log (detached).

        `shares`: by name, how much of the whole step's amount is in this piece, in [0, 1]; 0 where there is none. The
        part of a mean over the step is the share times the mean over the piece.
        """


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """What one call of `fit` trains, on what, how long, where it leaves its state, and what it is called.

    `seed` and the step decide together what is drawn at random in the passes.
    """

    name: str
    objective: Objective
    stream: Stream
    steps: int
    out: Path
    config: FitConfig
    seed: int
