"""Codecs between arrays and the blobs and lists in label files. Each states the most it can lose.

Blobs are compressed by Zstandard at level 1, because encoding is what limits a labelling run on the CPU: PNG takes ten
times as long to write for the same maps, and higher levels save a few per cent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zstandard
from numpy.typing import DTypeLike, NDArray

LEVEL = 1


def pack(array: NDArray[Any]) -> bytes:
    """Return an array's bytes, C order and little-endian, compressed without loss. The caller keeps shape and dtype."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return zstandard.compress(little.tobytes(), LEVEL)


def unpack(blob: bytes, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the packed array, new and writable. Raises ValueError if the blob is damaged or the sizes disagree."""
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        stated = zstandard.frame_content_size(blob)
        if min(shape, default=0) < 0 or stated != wanted:  # before memory is taken for them
            raise ValueError(f"{stated} bytes for an array of {' x '.join(map(str, shape))}")
        raw = zstandard.decompress(blob)
    except zstandard.ZstdError as error:
        raise ValueError(f"not a whole Zstandard frame: {error}") from error
    return np.frombuffer(bytearray(raw), np.dtype(dtype).newbyteorder("<")).reshape(shape)


def share_to_byte(share: NDArray[Any]) -> NDArray[np.uint8]:
    """Quantize values in [0, 1] to 256 levels: off by at most 1/510, and never moved across 0.5."""
    return np.floor(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)


def byte_to_share(byte: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the values in [0, 1] of levels from `share_to_byte`."""
    return byte.astype(np.float32) / np.float32(255)


def unit_to_bytes(vectors: NDArray[Any]) -> NDArray[np.int8]:
    """Quantize unit or zero vectors (..., 3) to signed bytes: directions are off by at most 0.5 degrees, zeros stay."""
    return np.rint(vectors * 127).astype(np.int8)


def bytes_to_unit(stored: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return the vectors (..., 3) of bytes from `unit_to_bytes`, of length one again or zero."""
    vectors = stored.astype(np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def flatten_lists(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return (row numbers, entries), both (N,), of all entries of a column of lists; a null list has none."""
    lists = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(lists)), lengths), pc.list_flatten(lists).to_numpy(zero_copy_only=False)
