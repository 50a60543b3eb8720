"""Throwing out what the page shows, and taking that back. What is rejected is a list in the root: see
`pipeline.stores.rejections`.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Sequence

from browser.loading import Loading
from pipeline.errors import DataError
from pipeline.stores.rejections import reject, undo_reject

REMEMBERED = 50
"""So many of the last rejections can be undone by their numbers."""


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A rejection that was carried out: its number, by which it is undone, and how many were not rejected before."""

    number: int
    count: int


class Rejecting:
    """Rejections of one server, which remembers the last of them."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self._done: collections.OrderedDict[int, tuple[list[str], str | None]] = collections.OrderedDict()
        self._next = 1
        self._lock = threading.Lock()

    def reject(self, keys: Sequence[str], store: str | None, reason: str) -> Rejected:
        """Reject images, or their labels in a store. Raises as `pipeline.stores.rejections.reject` does."""
        before = self.loading.rejected(store)
        new = [key for key in dict.fromkeys(keys) if key not in before]
        reject(self.loading.root, keys, store, reason)
        self.loading.look_at_rejected()
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._done[number] = (new, store)
            while len(self._done) > REMEMBERED:
                self._done.popitem(last=False)
        return Rejected(number, len(new))

    def take_back(self, keys: Sequence[str], store: str | None) -> int:
        """Undo rejections of images, or of their labels in a store; how many there were."""
        count = undo_reject(self.loading.root, keys, store)
        self.loading.look_at_rejected()
        return count

    def undo(self, number: int) -> int:
        """Undo a rejection by its number; how many it is about. DataError if that is not remembered."""
        with self._lock:
            if number not in self._done:
                raise DataError(f"Rejection {number} is not remembered: take back what it was by its images.")
            keys, store = self._done.pop(number)
        return self.take_back(keys, store) if keys else 0
