"""Arrays to bytes and back: the blobs of dense labels. Each codec states the most it can lose.

Zstandard at level 1, because encoding labels is what bounds a labelling run on the CPU side: PNG is an order of
magnitude slower to write for the same maps, and higher levels gain a few per cent.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import zstandard
from numpy.typing import DTypeLike, NDArray

LEVEL = 1
_local = threading.local()


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=LEVEL)  # one per thread: they are not thread-safe
    compressor: zstandard.ZstdCompressor = _local.compressor
    return compressor


def pack(array: NDArray[Any]) -> bytes:
    """An array's bytes in C order, little-endian, compressed. Lossless; shape and dtype are kept by the caller."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return _compressor().compress(np.ascontiguousarray(little).tobytes())


def unpack(blob: bytes, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """The array that `pack` was given; a fresh, writable copy.

    Raises ValueError if the blob is damaged or the sizes disagree.
    """
    try:
        raw = zstandard.ZstdDecompressor().decompress(blob)
    except zstandard.ZstdError as error:
        raise ValueError(f"not a whole Zstandard frame: {error}") from error
    return np.frombuffer(bytearray(raw), np.dtype(dtype).newbyteorder("<")).reshape(shape)


def share_to_byte(share: NDArray[Any]) -> NDArray[np.uint8]:
    """Values in [0, 1] as 256 levels: loses at most 1/510, and never moves a value across 0.5."""
    return np.floor(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)


def byte_to_share(byte: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The inverse of `share_to_byte`."""
    return byte.astype(np.float32) / np.float32(255)


def unit_to_bytes(vectors: NDArray[Any]) -> NDArray[np.int8]:
    """Unit vectors (..., 3) as three signed bytes, zero vectors as zeros: loses at most 0.5 degrees of direction."""
    return np.rint(vectors * 127).astype(np.int8)


def bytes_to_unit(stored: NDArray[np.int8]) -> NDArray[np.float32]:
    """The inverse of `unit_to_bytes`, length one again; zeros stay zeros."""
    vectors = stored.astype(np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
