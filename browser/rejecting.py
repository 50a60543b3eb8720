"""Reject images and labels from the page, and undo that. The list is in the root: see `pipeline.stores.rejections`."""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence

from browser.loading import Loading
from pipeline.errors import DataError
from pipeline.stores.rejections import reject, undo_reject

MAX_UNDO = 50
"""The last rejections, which can be undone by their numbers."""


class Rejecting:
    """Rejections through one server, which remembers the last ones for undo."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self._undo: collections.OrderedDict[int, tuple[list[str], str | None]] = collections.OrderedDict()
        self._next = 1
        self._lock = threading.Lock()

    def reject(self, keys: Sequence[str], store: str | None, reason: str) -> tuple[int, int]:
        """Reject images, or their labels in a store; return (number for `undo`, how many were not rejected before).

        Raises as `pipeline.stores.rejections.reject` does.
        """
        new = reject(self.loading.root, keys, store, reason)
        self.loading.refresh_rejections()
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._undo[number] = (new, store)
            while len(self._undo) > MAX_UNDO:
                self._undo.popitem(last=False)
        return number, len(new)

    def take_back(self, keys: Sequence[str], store: str | None) -> int:
        """Undo rejections of images, or of their labels in a store; return how many there were."""
        count = undo_reject(self.loading.root, keys, store)
        self.loading.refresh_rejections()
        return count

    def undo(self, number: int) -> int:
        """Undo a rejection by its number; return how many images or labels it was. Raises DataError for an old one."""
        with self._lock:
            if number not in self._undo:
                raise DataError(f"Rejection {number} is not among the last {MAX_UNDO}: take it back image by image.")
            keys, store = self._undo.pop(number)
        return self.take_back(keys, store) if keys else 0
