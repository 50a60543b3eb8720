"""The normals source: colours and arrays to unit vectors in camera axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import ConfigError, DataError
from pipeline.export._png import normals_to_rgb
from pipeline.sources import SourceRecord, normals

SIZE = (4, 2)
FACING, UP, RIGHT = [0, 0, 1], [0, 1, 0], [1, 0, 0]
VECTORS = np.array([[FACING, UP, RIGHT, [0, 0, 0]], [[0, 0.6, 0.8], [0.6, 0, 0.8], [0, -0.6, 0.8], FACING]], np.float32)


def write_normals(root: Path, name: str, content: NDArray[Any]) -> None:
    for folder in ("images", "normals"):
        (root / folder).mkdir(exist_ok=True)
    Image.new("RGB", SIZE).save(root / f"images/{Path(name).stem}.jpg")
    file = root / "normals" / name
    if file.suffix == ".npy":
        np.save(file, content)
    elif file.suffix == ".npz":
        np.savez(file, content)
    elif file.suffix == ".pfm":
        file.write_bytes(f"PF\n{SIZE[0]} {SIZE[1]}\n-1\n".encode() + content[::-1].astype("<f4").tobytes())
    elif file.suffix == ".exr":
        openexr = pytest.importorskip("OpenEXR")
        channels = {name: np.ascontiguousarray(content[..., axis]) for axis, name in enumerate("RGB")}
        openexr.File({"type": openexr.scanlineimage}, channels).write(str(file))
    else:
        Image.fromarray(content).save(file)


def record_of(root: Path, **options: Any) -> SourceRecord:
    source = normals.Source(normals.Config.model_validate({"path": str(root), **options}))
    (record,) = source.records()
    assert set(source.spaces()) == {"normals"}
    return record


def normals_of(root: Path, **options: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32] = record_of(root, **options).truth(SIZE).values["normals"]["normals"]
    assert found.dtype == np.float32
    return found


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pfm", ".exr"])
def test_normals_source_reads_arrays(suffix: str, tmp_path: Path) -> None:
    write_normals(tmp_path, f"a{suffix}", VECTORS)
    np.testing.assert_array_max_ulp(normals_of(tmp_path), VECTORS, 1)


def test_normals_source_reads_channels_first_and_drops_what_is_not_finite(tmp_path: Path) -> None:
    odd = VECTORS.astype(np.float64)
    odd[0, 0, 0] = np.nan
    odd[1, 3] = np.inf
    write_normals(tmp_path, "a.npy", np.moveaxis(odd, -1, 0))
    expected = VECTORS.copy()
    expected[1, 3] = 0
    np.testing.assert_array_max_ulp(normals_of(tmp_path), expected, 1)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.npy"])
def test_normals_source_reads_colors_as_the_export_writes_them(name: str, tmp_path: Path) -> None:
    write_normals(tmp_path, name, normals_to_rgb(VECTORS))
    found = normals_of(tmp_path)
    assert found[0, 3].tolist() == [0, 0, 0], "black is unknown"
    known = VECTORS.any(axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found[known], axis=-1), 1, rtol=1e-6)
    angles = np.degrees(np.arccos((found[known] * VECTORS[known]).sum(axis=-1).clip(-1, 1)))
    assert angles.max() < 0.5


def test_normals_source_computes_colors_exactly(tmp_path: Path) -> None:
    colors = np.tile(np.array([255, 191, 255], np.uint8), (2, 4, 1))
    colors[0, :3] = [[128, 128, 128], [255, 255, 255], [191, 128, 238]]
    write_normals(tmp_path, "a.png", colors)
    found = normals_of(tmp_path)
    assert not found[0, :2].any(), "vectors without a length near 1 are unknown"
    vector = np.array([191, 128, 238]) / 255 * 2 - 1
    np.testing.assert_allclose(found[0, 2], vector / np.linalg.norm(vector), rtol=1e-6)
    vector = np.array([255, 191, 255]) / 255 * 2 - 1
    assert np.linalg.norm(vector) > 1.49
    np.testing.assert_allclose(found[1, 1], vector / np.linalg.norm(vector), rtol=1e-6)


@pytest.mark.parametrize("flip", [[], ["y"], ["y", "z"], ["x", "y", "z"]])
def test_normals_source_flips_axes(flip: list[str], tmp_path: Path) -> None:
    signs = np.array([-1 if axis in flip else 1 for axis in "xyz"], np.float32)
    write_normals(tmp_path, "a.npy", VECTORS * signs)
    np.testing.assert_array_max_ulp(normals_of(tmp_path, flip=flip), VECTORS, 1)


def test_normals_source_refuses_normals_that_point_away(tmp_path: Path) -> None:
    away = np.tile(np.array([0, 0, -1], np.float32), (2, 4, 1))
    write_normals(tmp_path, "a.npy", away)
    with pytest.raises(DataError, match=r"normals/a.npy: 100% of its normals point away .*`flip: \[z\]` turns them"):
        normals_of(tmp_path)
    assert normals_of(tmp_path, flip=["z"])[0, 0].tolist() == [0, 0, 1]
    write_normals(tmp_path, "a.npy", -away)
    with pytest.raises(DataError, match="leave z out of `flip`"):
        normals_of(tmp_path, flip=["z"])
    with pytest.raises(ValidationError, match="is there twice"):
        record_of(tmp_path, flip=["z", "z"])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.npy", np.full((2, 4, 3), 7.0), "holds numbers up to 7; parts of unit vectors are from -1 to 1"),
        ("a.npy", np.zeros((2, 4, 3)), "all of its normals are unknown"),
        ("a.npy", np.zeros((2, 4, 2)), r"the shape \(2, 4, 2\), not \(height, width, 3\)"),
        ("a.npy", np.zeros((2, 4)), r"the shape \(2, 4\), not"),
        ("a.png", np.zeros((2, 4, 3), np.uint8), "all of its normals are unknown"),
        ("a.jpg", np.full((2, 4, 3), 128, np.uint8), "JPEG changes the numbers"),
        ("a.png", np.full((4, 4, 3), (128, 128, 255), np.uint8), "it is 4x4, the upright image 4x2"),
    ],
)
def test_normals_source_refuses_what_are_no_normals(
    name: str, content: NDArray[Any], reason: str, tmp_path: Path
) -> None:
    write_normals(tmp_path, name, content)
    with pytest.raises(DataError, match=rf"^normal map normals/{name}: .*{reason}"):
        normals_of(tmp_path)


def test_normals_source_enlarges_smaller_maps(tmp_path: Path) -> None:
    write_normals(tmp_path, "a.npy", VECTORS)
    Image.new("RGB", (8, 4)).save(tmp_path / "images/a.jpg")
    found = record_of(tmp_path).truth((8, 4)).values["normals"]["normals"]
    np.testing.assert_array_max_ulp(found, VECTORS.repeat(2, 0).repeat(2, 1), 1)


def test_normals_source_names_missing_folders(tmp_path: Path) -> None:
    write_normals(tmp_path, "a.npy", VECTORS)
    with pytest.raises(ConfigError, match=f"normals: there is no folder {tmp_path}/surface"):
        record_of(tmp_path, normals="surface")
