"""Arrays of numbers in files, as they were written."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import arrays
from pipeline.data.arrays import decode_array
from pipeline.errors import ConfigError, DataError

NUMBERS = np.arange(12).reshape(3, 4)
DTYPES = ["u1", "<u2", ">u2", "<i4", "<f2", "<f4", ">f4", "<f8", "?"]


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(*arrays: NDArray[Any], **named: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, *arrays, **named)
    return buffer.getvalue()


def pfm(array: NDArray[Any], scale: str = "-1.0", end: str = "\n") -> bytes:
    kind, order = "Pf" if array.ndim == 2 else "PF", "<f4" if scale.startswith("-") else ">f4"
    head = f"{kind}\n{array.shape[1]} {array.shape[0]}\n{scale}{end}"
    return head.encode() + array[::-1].astype(order).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_decode_array_reads_npy_and_npz_as_written(dtype: str, order: Any) -> None:
    array = np.asarray(NUMBERS, dtype, order=order)
    for found in (decode_array(npy(array), ".npy"), decode_array(npz(depth=array), ".npz")):
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        assert found.dtype.isnative
        assert found.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        *[(shape, 1, (3, 4)) for shape in ((3, 4), (1, 3, 4), (3, 4, 1), (1, 1, 3, 4), (1, 3, 4, 1))],
        *[((1, 9, 1), 1, (1, 9)), ((1, 9), 1, (1, 9)), ((1, 9), 9, (1, 9))],
        *[
            ((1, 9, 5), 5, (1, 9, 5)),
            ((3, 9, 2), 2, (3, 9, 2)),
            ((9, 1, 2), 2, (9, 1, 2)),
            ((1, 9, 1, 2), 2, (9, 1, 2)),
        ],
        *[
            ((4, 5, 3), 3, (4, 5, 3)),
            ((3, 4, 5), 3, (4, 5, 3)),
            ((3, 4, 3), 3, (3, 4, 3)),
            ((1, 3, 4, 5), 3, (4, 5, 3)),
        ],
        *[((2, 9, 9), 2, (2, 9, 9)), ((3, 9, 9), 1, (3, 9, 9))],
    ],
    ids=str,
)
def test_decode_array_moves_no_axis_that_its_channels_need(
    shape: tuple[int, ...], channels: int, expected: tuple[int, ...]
) -> None:
    numbers = np.arange(np.prod(shape)).reshape(shape)
    found = decode_array(npy(numbers), ".npy", channels)
    assert found.shape == expected
    moved = np.moveaxis(numbers.reshape(3, 4, 5), 0, -1) if found.shape == (4, 5, 3) and 3 in shape[:2] else numbers
    assert found.ravel().tolist() == moved.ravel().tolist()


def test_decode_array_of_rgb_tiff_gives_channels_where_as_many_are_wanted() -> None:
    colors = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    buffer = io.BytesIO()
    Image.fromarray(colors).save(buffer, "TIFF")
    assert decode_array(buffer.getvalue(), ".tif", 3).tolist() == colors.tolist()
    with pytest.raises(DataError, match="are colours, not numbers"):
        decode_array(buffer.getvalue(), ".tif")


@pytest.mark.parametrize("scale", ["-1.0", "1.0", "-0.003922", "2e-1", "1"])
@pytest.mark.parametrize("end", ["\n", " ", "\r"])
def test_decode_pfm_reads_rows_from_the_bottom_in_either_order_of_bytes(scale: str, end: str) -> None:
    array = np.array([[0.5, -2, np.inf], [3, 4e9, 1e-20]], np.float32)
    found = decode_array(pfm(array, scale, end), ".pfm")
    assert found.dtype == np.float32
    assert found.tolist() == array.tolist()


def test_decode_pfm_reads_three_channels() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    assert decode_array(pfm(array), ".pfm", 3).tolist() == array.tolist()
    by_hand = b"Pf\n1 2\n1\n" + struct.pack(">ff", 7, 8)
    assert decode_array(by_hand, ".pfm").tolist() == [[8], [7]], "the first number is of the lowest row"


def test_decode_array_reads_other_suffixes_as_images() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[7, 40_000]], np.uint16)).save(buffer, "PNG")
    assert decode_array(buffer.getvalue(), ".png").tolist() == [[7, 40_000]]


def oversized_npy() -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + bytes(80)


@pytest.mark.parametrize(
    ("data", "suffix", "reason"),
    [
        (b"", ".npy", "empty file"),
        (b"text", ".npy", "no array of NumPy"),
        (npy(NUMBERS)[:-1], ".npy", "truncated"),
        (npy(np.array(["a"], object)), ".npy", "an array of object, not of numbers"),
        (npy(np.array([["a"]])), ".npy", "not of numbers"),
        (npy(np.array([[1j]])), ".npy", "not of numbers"),
        (npy(np.arange(4)), ".npy", r"the shape \(4,\), not \(height, width\)"),
        (npy(np.zeros((0, 4))), ".npy", r"the shape \(0, 4\)"),
        (npy(np.zeros((2, 2, 2, 2))), ".npy", r"the shape \(2, 2, 2, 2\)"),
        (oversized_npy(), ".npy", "truncated"),
        (b"", ".npz", "empty file"),
        (b"PK", ".npz", "no whole .npz file"),
        (npz(NUMBERS)[:-30], ".npz", "no whole .npz file"),
        (npz(NUMBERS, depth=NUMBERS), ".npz", "holds 2 arrays"),
        (npz(np.array(["a"], object)), ".npz", "an array of object"),
        (b"P6\n1 1\n255\n123", ".pfm", "no PFM file"),
        (pfm(NUMBERS)[:-1], ".pfm", "truncated or empty: 4x3"),
        (b"Pf\n0 4\n-1\n", ".pfm", "truncated or empty"),
        (b"Pf\n999999999 999999999\n-1\n", ".pfm", "truncated or empty"),
        (b"Pf\n1 1\n-.\n1234", ".pfm", "is no number"),
    ],
)
def test_decode_array_refuses_damaged_files(data: bytes, suffix: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_array(data, suffix)


def test_decode_npy_refuses_or_reads_a_header_with_any_byte_changed() -> None:
    """NumPy evaluates the header as Python, and if that fails tries it again as Python 2, with errors of its own."""
    file = io.BytesIO()
    np.save(file, np.arange(12, dtype=np.float32).reshape(3, 4))
    whole, refused = file.getvalue(), 0
    for place in range(128):
        for byte in {*b"({['\"\\\n\x00L0,#", *(whole[place] ^ 1 << bit for bit in range(8))}:
            try:
                decode_array(whole[:place] + bytes([byte]) + whole[place + 1 :], ".npy")
            except DataError:
                refused += 1
    assert refused > 1000


def test_decode_npz_unpacks_no_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    data = npz(np.zeros((1000, 1000)))
    assert len(data) < 20_000
    monkeypatch.setattr(arrays, "MOST_BYTES", 7_999_999)
    with pytest.raises(DataError, match="an array of 8,000,128 bytes; 7,999,999 are read"):
        decode_array(data, ".npz")


def test_decode_exr_says_how_to_install_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ConfigError, match=r"EXR files need the extra exr: uv pip install -e .*\[exr\]"):
        decode_array(b"v/1", ".exr")


def exr(folder: Path, channels: dict[str, NDArray[Any]]) -> bytes:
    openexr = pytest.importorskip("OpenEXR")
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    openexr.File(header, channels).write(str(folder / "a.exr"))
    return (folder / "a.exr").read_bytes()


def test_decode_exr_picks_depth_and_vectors(tmp_path: Path) -> None:
    depth = NUMBERS.astype(np.float32) + 0.5
    other = depth + 1
    for channels in ({"Z": depth}, {"V": depth}, {"whatever": depth}, {"A": other, "Z": depth}, {"View.Z": depth}):
        assert decode_array(exr(tmp_path, channels), ".exr").tolist() == depth.tolist()
    assert decode_array(exr(tmp_path, dict.fromkeys("RGB", depth)), ".exr").tolist() == depth.tolist()
    vectors = decode_array(exr(tmp_path, {"R": depth, "G": other, "B": depth}), ".exr")
    assert vectors.tolist() == np.stack([depth, other, depth], -1).tolist()


def test_decode_exr_refuses_damaged_files(tmp_path: Path) -> None:
    whole = exr(tmp_path, {"Z": np.ones((64, 64), np.float32)})
    for data in (b"v/1", b"text", whole[:100], whole[:-50]):
        with pytest.raises(DataError, match="damaged or no EXR file"):
            decode_array(data, ".exr")
    with pytest.raises(DataError, match="none of the channels"):
        decode_array(exr(tmp_path, {"P": NUMBERS.astype(np.float32), "Q": NUMBERS.astype(np.float32)}), ".exr")
