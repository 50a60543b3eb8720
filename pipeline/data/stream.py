"""The protocol of a stream of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol


class Share(Protocol):
    """The images that one process takes of a step's batch, not collated yet."""

    @property
    def keys(self) -> list[str]:
        """The images' keys."""

    def cut(self, pieces: int) -> Sequence[Any]:
        """All of them in order as so many batches, whose sizes differ by one at most. A batch has `keys`, too."""


class Stream(Protocol):
    """Where one process's shares come from, by the number of their step."""

    @property
    def waited(self) -> float:
        """Seconds that were spent waiting for them so far."""

    def stream(self, start: int) -> Iterator[Share]: ...


def cut(count: int, pieces: int) -> list[slice]:
    """`count` things in a row as so many runs, whose lengths differ by one at most."""
    return [slice(piece * count // pieces, (piece + 1) * count // pieces) for piece in range(pieces)]
