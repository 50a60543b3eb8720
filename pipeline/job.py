"""What the training loop is given: an objective, the images it learns from, and how long and how to train."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from pipeline.config import FitConfig


class Objective(Protocol):
    """What is trained: an `nn.Module` called on a batch."""

    def __call__(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, a mean over the images, and the named parts for the log (detached)."""


class Share(Protocol):
    """The images that one process takes of a step's batch, not collated yet."""

    @property
    def keys(self) -> list[str]:
        """The images' keys."""

    def cut(self, pieces: int) -> Sequence[Any]:
        """All of them in order as so many batches, whose sizes differ by one at most. A batch has `keys`, too."""


class Stream(Protocol):
    """Where one process's shares come from, by the number of their step."""

    waited: float

    def stream(self, start: int) -> Iterator[Share]: ...


@dataclasses.dataclass(frozen=True)
class Job:
    """What one call of `fit` trains, on what, how long, where it leaves its state, and what it is called.

    `seed` and the step decide together what is drawn at random in the passes.
    """

    name: str
    objective: nn.Module
    stream: Stream
    steps: int
    out: Path
    config: FitConfig
    seed: int


def cut(count: int, pieces: int) -> list[slice]:
    """`count` things in a row as so many runs, whose lengths differ by one at most."""
    return [slice(piece * count // pieces, (piece + 1) * count // pieces) for piece in range(pieces)]
