"""Codecs: round trips within the bound that each one states."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.stores import codecs

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9)
SHARES = st.floats(0, 1, width=32)


@given(hnp.arrays(st.sampled_from([np.uint8, np.uint16, np.int8, np.float16, np.float32]), SHAPES))
def test_pack_is_lossless(array: np.ndarray) -> None:
    back = codecs.unpack(codecs.pack(array), array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    assert back.flags.writeable


def test_pack_takes_any_memory_layout() -> None:
    array = np.arange(24, dtype=np.uint16).reshape(4, 6)
    for view in (array[:, ::-1], array.T, array[::2, 1::3], array.astype(">u2")):
        np.testing.assert_array_equal(codecs.unpack(codecs.pack(view), np.uint16, view.shape), view)


def test_unpack_returns_a_new_array() -> None:
    blob = codecs.pack(np.zeros(4, np.uint8))
    codecs.unpack(blob, np.uint8, (4,))[:] = 7
    assert not codecs.unpack(blob, np.uint8, (4,)).any()


def test_unpack_to_another_size_raises() -> None:
    blob = codecs.pack(np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="12 bytes for an array of 3 x 5"):
        codecs.unpack(blob, np.uint8, (3, 5))
    with pytest.raises(ValueError, match="3 bytes for an array of 2"):
        codecs.unpack(codecs.pack(np.zeros(3, np.uint8)), np.uint16, (2,))


def test_unpack_takes_no_memory_for_sizes_that_disagree() -> None:
    blob = codecs.pack(np.zeros(1 << 30, np.uint8))
    for shape in ((8, 8), (-3, 8), (-1,)):
        with pytest.raises(ValueError, match="1073741824 bytes for an array of"):
            codecs.unpack(blob, np.uint8, shape)


@pytest.mark.parametrize("blob", [b"", b"no frame", codecs.pack(np.arange(100))[:-4]])
def test_unpack_of_a_damaged_blob_raises(blob: bytes) -> None:
    with pytest.raises(ValueError, match="not a whole Zstandard frame"):
        codecs.unpack(blob, np.int64, (100,))


def test_pack_is_deterministic_across_threads() -> None:
    arrays = [np.random.default_rng(number % 4).integers(0, 9, (64, 64), np.uint8) for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        blobs = list(pool.map(codecs.pack, arrays))
    assert blobs == [codecs.pack(array) for array in arrays]
    assert len(blobs[0]) < arrays[0].nbytes / 1.5


@given(SHARES)
def test_share_to_byte_is_off_by_half_a_level_at_most(share: float) -> None:
    back = codecs.byte_to_share(codecs.share_to_byte(np.array([share], np.float32)))
    assert abs(float(back[0]) - share) <= 1 / 510 + 1e-7


@given(SHARES)
def test_share_to_byte_never_crosses_one_half(share: float) -> None:
    """0.5 is the threshold of the MuST paper: it is kept, and nothing below is."""
    back = codecs.byte_to_share(codecs.share_to_byte(np.array([share], np.float32)))
    assert (back[0] >= 0.5) == (share >= 0.5)


def test_share_to_byte_keeps_the_float_below_one_half_below() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    assert codecs.share_to_byte(np.array([below, 0.5], np.float32)).tolist() == [127, 128]


@given(SHARES, SHARES)
def test_share_to_byte_keeps_the_order(one: float, other: float) -> None:
    low, high = codecs.share_to_byte(np.array(sorted([one, other]), np.float32))
    assert low <= high


def test_share_to_byte_clips() -> None:
    assert codecs.share_to_byte(np.array([-0.2, 1.7], np.float32)).tolist() == [0, 255]


@given(hnp.arrays(np.float32, (20, 3), elements=st.floats(-1, 1, width=32)))
def test_unit_to_bytes_is_off_by_half_a_degree_at_most(vectors: np.ndarray) -> None:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.maximum(length, 1e-3))[length[:, 0] > 1e-2]
    back = codecs.bytes_to_unit(codecs.unit_to_bytes(unit)).astype(np.float64)
    cosine = (back * unit).sum(axis=1) / np.linalg.norm(unit.astype(np.float64), axis=1)
    assert (np.degrees(np.arccos(np.clip(cosine, -1, 1))) <= 0.5).all()
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1, atol=1e-6)


def test_unit_to_bytes_keeps_zero_vectors() -> None:
    assert not codecs.bytes_to_unit(codecs.unit_to_bytes(np.zeros((2, 3, 3), np.float32))).any()
