"""Depth maps in files of every kind, and as their inverse, value for value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ConfigError, DataError
from pipeline.sources import depth

METRES = np.array([[1.25, 0, 3.5, 60], [0.001, 2, 65_000, 7]], np.float32)
SIZE = (4, 2)


def write_depth(file: Path, numbers: NDArray[Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, numbers)
    elif file.suffix == ".npz":
        np.savez_compressed(file, numbers)
    elif file.suffix == ".pfm":
        file.write_bytes(f"Pf\n{numbers.shape[1]} {numbers.shape[0]}\n-1\n".encode() + numbers[::-1].tobytes())
    elif file.suffix == ".exr":
        openexr = pytest.importorskip("OpenEXR")
        openexr.File({"type": openexr.scanlineimage}, {"Z": numbers}).write(str(file))
    else:
        Image.fromarray(numbers).save(file)


def depth_of(root: Path, name: str, numbers: NDArray[Any], **options: Any) -> NDArray[np.float32]:
    """Return the depth of an image whose depth map is a file of this name."""
    (root / "rgb").mkdir(exist_ok=True)
    Image.new("RGB", SIZE).save(root / f"rgb/{Path(name).stem}.jpg")
    write_depth(root / "depth" / name, numbers)
    source = depth.Source(depth.Config.model_validate({"path": str(root), **options}))
    (record,) = source.records()
    assert not source.problems
    assert f"depth/{name}" in {row[0] for row in source.file_stamps()}
    found: NDArray[np.float32] = record.truth(SIZE).values["depth"]["depth"]
    assert found.dtype == np.float32
    return found


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pfm", ".exr", ".tif"])
def test_depth_source_takes_floating_point_for_metres(suffix: str, tmp_path: Path) -> None:
    assert depth_of(tmp_path, f"a{suffix}", METRES).tolist() == METRES.tolist()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pfm", ".exr", ".tif"])
def test_depth_source_takes_what_is_not_finite_for_unknown(suffix: str, tmp_path: Path) -> None:
    odd = METRES.copy()
    odd[0, :4] = np.nan, np.inf, -np.inf, -1
    assert depth_of(tmp_path, f"a{suffix}", odd).tolist() == [[0, 0, 0, 0], METRES[1].tolist()]


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", "u1"), (".png", "u2"), (".npy", "u2"), (".npz", "i4")])
def test_depth_source_takes_whole_numbers_for_millimetres(suffix: str, dtype: str, tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 2, 255], [9, 100, 250, 3]], dtype)
    expected = numbers.astype(np.float32) * np.float32(0.001)
    assert depth_of(tmp_path, f"a{suffix}", numbers).tolist() == expected.tolist()
    scaled = numbers.astype(np.float32) * np.float32(0.5)
    assert depth_of(tmp_path, f"a{suffix}", numbers, unit_m=0.5).tolist() == scaled.tolist()


@pytest.mark.parametrize(
    ("suffix", "numbers"),
    [
        (".png", np.array([[0, 1, 2, 4], [8, 100, 250, 65535]], np.uint16)),
        (".pfm", np.array([[0, 0.5, 2, 4]] * 2, np.float32)),
    ],
)
def test_depth_source_reads_inverse_depth(suffix: str, numbers: NDArray[Any], tmp_path: Path) -> None:
    found = depth_of(tmp_path, f"a{suffix}", numbers, inverse=True, unit_m=38.5)
    for metres, number in zip(found.ravel().tolist(), numbers.ravel().tolist(), strict=True):
        assert metres == (float(np.float32(38.5 / number)) if number else 0)


def test_depth_source_refuses_inverse_depth_of_unknown_unit(tmp_path: Path) -> None:
    numbers = np.ones((2, 4), np.uint8)
    with pytest.raises(ConfigError, match="inverse: metres are unit_m / number; state `unit_m`"):
        depth_of(tmp_path, "a.png", numbers, inverse=True)
    with pytest.raises(ConfigError, match="inverse: scale 'relative' is of inverse depth already"):
        depth_of(tmp_path, "a.png", numbers, inverse=True, unit_m=1, scale="relative")


def test_depth_source_takes_sky_at_an_absurd_distance_for_unknown(tmp_path: Path) -> None:
    far = METRES.copy()
    far[0, 0], far[1, 3] = 1e10, 3e38
    expected = METRES.copy()
    expected[0, 0] = expected[1, 3] = 0
    assert depth_of(tmp_path, "a.npy", far).tolist() == expected.tolist()
    with pytest.raises(DataError, match=r"reaches 1e\+10 m, but at most 65504 m can be stored: is `unit_m` right"):
        depth_of(tmp_path, "a.npy", np.full((2, 4), 1e10, np.float32))


def test_depth_source_takes_what_a_tiff_states_for_unknown(tmp_path: Path) -> None:
    depth_of(tmp_path, "a.tif", METRES)
    stated = METRES.copy()
    stated[0, 0] = 7777
    tifffile.imwrite(tmp_path / "depth/a.tif", stated, extratags=[(42113, "s", 0, "7777", True)])
    (record,) = depth.Source(depth.Config(path=str(tmp_path))).records()
    assert record.truth(SIZE).values["depth"]["depth"].ravel()[:2].tolist() == [0, METRES[0, 1]]


@pytest.mark.parametrize("options", [{"scale": "relative"}, {"inverse": True, "unit_m": 1}], ids=str)
def test_depth_source_counts_numbers_that_are_too_large(options: Any, tmp_path: Path) -> None:
    large = METRES.astype(np.float32)
    large[0, 0] = 3.4e38
    depth_of(tmp_path, "a.npy", large)
    (record,) = depth.Source(depth.Config(path=str(tmp_path), **options)).records()
    truth = record.truth(SIZE)
    assert truth.notes == ["numbers above 1e+30 in size are unknown: 1 numbers"]
    found = truth.values["depth"]["depth"]
    assert found[0, 0] == 0
    assert found[0, 2] > 0


def test_depth_source_strips_suffix_of_depth_maps(tmp_path: Path) -> None:
    (tmp_path / "rgb").mkdir()
    Image.new("RGB", SIZE).save(tmp_path / "rgb/a.jpg")
    write_depth(tmp_path / "rgb/a_depth.npy", METRES)
    config = depth.Config(path=str(tmp_path), depth="rgb", depth_suffix="_depth")
    source = depth.Source(config)
    (record,) = source.records()
    assert record.truth(SIZE).values["depth"]["depth"].tolist() == METRES.tolist()
    assert not source.skipped


def test_depth_source_refuses_damaged_arrays_and_vectors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"depth map depth/a.npy: holds 3 numbers for each pixel, not one"):
        depth_of(tmp_path, "a.npy", np.ones((2, 4, 3), np.float32))
    (tmp_path / "depth/a.npy").write_bytes(b"text")
    (record,) = depth.Source(depth.Config(path=str(tmp_path))).records()
    with pytest.raises(DataError, match=r"depth map depth/a.npy: no array of NumPy"):
        record.truth(SIZE)


def test_depth_source_reads_split_folders_and_lists(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for folder in ("rgb", "depth"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.new("RGB", SIZE).save(tmp_path / f"rgb/{split}/a.jpg")
        np.save(tmp_path / f"depth/{split}/a.npy", METRES)
    source = depth.Source(depth.Config(path=str(tmp_path)))
    assert [record.split for record in source.records()] == ["train", "val"]
    (tmp_path / "test.txt").write_text("val/a\n")
    source = depth.Source(depth.Config(path=str(tmp_path)))
    assert [(record.name, record.split) for record in source.records()] == [("rgb/val/a.jpg", "test")]
