"""Files on any storage, open for reading.

`fsspec`'s own `fs.open` reads by ranges too, but raises the storage's errors in the middle of tarfile or pyarrow, which
take an OSError for a damaged file. A lost network must not look like damage, so every range is read by
`StoragePath.read`, whose errors are ours.
"""

from __future__ import annotations

import errno
from typing import IO

from fsspec.spec import AbstractBufferedFile

from pipeline.storage.path import StoragePath

READ_AHEAD = 8 << 20
"""Bytes fetched beyond each read of a file that is read from front to back."""


class RemoteFile(AbstractBufferedFile):  # type: ignore[misc]
    """A remote file of `size` bytes, open for reading; each read fetches `read_ahead` bytes more than asked for."""

    def __init__(self, path: StoragePath, size: int, read_ahead: int = 0) -> None:
        super().__init__(path.fs, path.path, size=size, block_size=read_ahead)
        self.storage_path = path

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.storage_path.read(start, end - start)


def open_file(path: StoragePath) -> IO[bytes]:
    """Open a file on any storage for reading.

    Raises OSError (FileNotFoundError) for a local file; for a remote one, the reads raise as `StoragePath.read` does.
    """
    if path.local:
        return open(path, "rb")
    size, _ = path.stamp()
    if size < 0:
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
    return RemoteFile(path, size, READ_AHEAD)
