"""A remote file as an open file, for libraries that read files: each read is a request for those bytes."""

from __future__ import annotations

import io
from typing import IO

from pipeline.storage.path import Place

READ_AHEAD = 8 << 20
"""Bytes that are asked for at a time of a file that is read from front to back."""


def opened(place: Place) -> IO[bytes]:
    """A file anywhere, open for reading. Raises OSError, as FileNotFoundError; of one that is elsewhere reading raises
    what `Place.read` does.
    """
    if place.local:
        return open(place, "rb")
    return io.BufferedReader(RangedFile(place, place.stamp()[0]), READ_AHEAD)


class RangedFile(io.RawIOBase):
    """A file elsewhere, of `size` bytes, open for reading. Nothing is read ahead."""

    def __init__(self, place: Place, size: int) -> None:
        super().__init__()
        self.place, self.size, self._position = place, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self.size - self._position))
        if size:
            buffer[:size] = self.place.read(self._position, size)
        self._position += size
        return size
