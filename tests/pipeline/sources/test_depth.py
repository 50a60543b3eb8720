"""The depth source: units, scenes and their cameras, normals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord, depth

CAMERA = {"fx": 40, "fy": 40, "cx": 15.5, "cy": 11.5}
CAMERAS = {"unit": "millimetre", "unknown": 0, "scenes": {"hall": CAMERA, "lab": None}}
SIZE = (32, 24)


def frame(root: Path, name: str, millimetres: NDArray[np.uint16] | None, size: tuple[int, int] = SIZE) -> None:
    for folder in ("rgb", "depth"):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(root / "rgb" / f"{name}.jpg")
    if millimetres is not None:
        Image.fromarray(millimetres).save(root / "depth" / f"{name}.png")


def wall(width: int = 32, height: int = 24, distance: int = 1500) -> NDArray[np.uint16]:
    return np.full((height, width), distance, np.uint16)


def cameras(root: Path, **changes: Any) -> None:
    (root / "cameras.json").write_text(json.dumps(CAMERAS | changes))


def open_source(root: Path, **options: Any) -> depth.Source:
    return depth.Source(depth.Config(path=str(root), **options))


def single_record(source: depth.Source) -> SourceRecord:
    (record,) = source.records()
    return record


def test_depth_source_converts_millimetres_and_keeps_zero_unknown(tmp_path: Path) -> None:
    numbers = wall()
    numbers[0, :3] = (0, 1, 65535)
    frame(tmp_path, "hall_1", numbers)
    source = open_source(tmp_path)
    assert source.spaces()["depth"].scale == "metric"
    assert set(source.spaces()) == {"depth"}
    truth = single_record(source).truth(SIZE)
    found = truth.values["depth"]["depth"]
    assert found.dtype == np.float32
    assert found[0, :3].tolist() == pytest.approx([0, 0.001, 65.535])
    assert found[5, 5] == pytest.approx(1.5)
    assert set(truth.values) == {"depth"}


def test_depth_source_reads_other_units_and_unknown_values(tmp_path: Path) -> None:
    numbers = wall()
    numbers[0, 0] = 65535
    frame(tmp_path, "hall_1", numbers)
    cameras(tmp_path, unit="centimetre", unknown=65535)
    for options in ({"unit_m": 0.01}, {}):
        found = single_record(open_source(tmp_path, **options)).truth(SIZE).values["depth"]["depth"]
        assert found[0, 0] == 0
        assert found[1, 1] == pytest.approx(15)
    with pytest.raises(ConfigError, match=r"unit_m: 0.001 contradicts .*the unit is the centimetre"):
        open_source(tmp_path, unit_m=0.001)


def test_depth_source_reads_floating_point(tmp_path: Path) -> None:
    frame(tmp_path, "a", None)
    numbers = np.full((24, 32), 1.25, np.float32)
    numbers[0, :3] = (np.nan, np.inf, -1)
    Image.fromarray(numbers).save(tmp_path / "depth" / "a.tif")
    found = single_record(open_source(tmp_path)).truth(SIZE).values["depth"]["depth"]
    assert found[0, :4].tolist() == [0, 0, 0, 1.25]


def test_depth_source_scales_relative_depth_to_the_nearest(tmp_path: Path) -> None:
    nearness = wall(distance=65535)
    nearness[0, :2] = 0, 6553
    frame(tmp_path, "a", nearness)
    source = open_source(tmp_path, scale="relative")
    assert source.spaces()["depth"].scale == "relative"
    found = single_record(source).truth(SIZE).values["depth"]["depth"]
    np.testing.assert_allclose(found[0, :3], [0, 0.1, 1], rtol=1e-4)
    with pytest.raises(ConfigError, match="'from_depth' needs distances"):
        open_source(tmp_path, scale="relative", normals="from_depth")


def test_depth_source_derives_normals_with_the_scene_camera(tmp_path: Path) -> None:
    y = np.arange(24)[:, None] - CAMERA["cy"]
    floor = np.where(y > 2, 1000 * CAMERA["fy"] / np.maximum(y, 1), 0) * np.ones((1, 32))
    frame(tmp_path, "hall_1", floor.astype(np.uint16))
    cameras(tmp_path)
    source = open_source(tmp_path, normals="from_depth")
    assert set(source.spaces()) == {"depth", "normals"}
    truth = single_record(source).truth(SIZE)
    normals = truth.values["normals"]["normals"]
    assert normals.shape == (24, 32, 3)
    assert normals.dtype == np.float32
    assert not normals[:13].any()
    assert normals[18:].reshape(-1, 3) @ [0, 1, 0] == pytest.approx(1, abs=0.01), "a floor faces up"
    assert truth.notes == []


@pytest.mark.parametrize("name", ["lab_1", "attic_1", "hallway_1"])
def test_depth_source_gives_no_normals_without_intrinsics(tmp_path: Path, name: str) -> None:
    frame(tmp_path, name, wall())
    cameras(tmp_path)
    truth = single_record(open_source(tmp_path, normals="from_depth")).truth(SIZE)
    assert set(truth.values) == {"depth"}
    assert truth.notes == ["no normals: no intrinsics"]


@pytest.mark.parametrize("name", ["hall_1", "hall/1", "hall-b.1", "hall"])
def test_in_scene_matches_beginning_of_name(tmp_path: Path, name: str) -> None:
    frame(tmp_path, name, wall())
    cameras(tmp_path)
    assert "normals" in single_record(open_source(tmp_path, normals="from_depth")).truth(SIZE).values


def test_depth_source_prefers_the_longest_matching_scene(tmp_path: Path) -> None:
    frame(tmp_path, "hall_1", wall())
    frame(tmp_path, "hall_b_1", wall())
    frame(tmp_path, "x", wall())
    cameras(tmp_path, scenes={"": CAMERA, "hall": None, "hall_b": CAMERA})
    truths = [record.truth(SIZE) for record in open_source(tmp_path, normals="from_depth").records()]
    assert ["normals" in truth.values for truth in truths] == [False, True, True]


def test_depth_source_enlarges_smaller_depth_maps(tmp_path: Path) -> None:
    numbers = wall()
    numbers[:, 16:] = 3000
    frame(tmp_path, "hall_1", numbers, (64, 48))
    cameras(tmp_path)
    values = single_record(open_source(tmp_path, normals="from_depth")).truth((64, 48)).values
    found = values["depth"]["depth"]
    assert found.shape == (48, 64)
    assert np.unique(found).tolist() == pytest.approx([1.5, 3.0]), "no metres between the two"
    assert (found[:, :32] < 2).all()
    assert values["normals"]["normals"].shape == (48, 64, 3)


def test_depth_source_refuses_other_aspect_ratio(tmp_path: Path) -> None:
    frame(tmp_path, "a", wall(32, 20))
    with pytest.raises(DataError, match=r"depth map depth/a.png: it is 32x20, the upright image 32x24$"):
        single_record(open_source(tmp_path)).truth(SIZE)
    frame(tmp_path, "a", wall(24, 32))
    with pytest.raises(DataError, match="before the rotation that its EXIF asks for"):
        single_record(open_source(tmp_path)).truth(SIZE)


def test_depth_source_refuses_depth_map_without_depth(tmp_path: Path) -> None:
    frame(tmp_path, "a", wall(distance=0))
    with pytest.raises(DataError, match=r"depth map depth/a.png: all of its depth is unknown"):
        single_record(open_source(tmp_path)).truth(SIZE)


def test_depth_source_refuses_depth_beyond_float16(tmp_path: Path) -> None:
    frame(tmp_path, "a", wall(distance=65535))
    with pytest.raises(
        DataError, match=r"a\.png: reaches 65535 m, but at most 65504 m can be stored: is `unit_m` right"
    ):
        single_record(open_source(tmp_path, unit_m=1.0)).truth(SIZE)


def test_depth_source_reports_unpaired_files(tmp_path: Path) -> None:
    frame(tmp_path, "a", wall())
    frame(tmp_path, "b", None)
    source = open_source(tmp_path)
    truths = [record.truth(SIZE) for record in source.records()]
    assert truths[1].values == {}
    assert truths[1].notes == ["no depth map"]
    (tmp_path / "rgb/a.jpg").unlink()
    frame(tmp_path, "b", wall())
    list(source.records())
    assert source.problems == [("depth/a.png", "a depth map without an image")]


def test_depth_source_holds_out_scenes_or_a_share(tmp_path: Path) -> None:
    for i in range(20):
        for scene in ("hall", "lab", "lab2"):
            frame(tmp_path, f"{scene}_{i}", wall())
    splits = {record.name: record.split for record in open_source(tmp_path, hold_out=["lab"]).records()}
    assert {name for name, split in splits.items() if split == "test"} == {f"rgb/lab_{i}.jpg" for i in range(20)}
    share = [record.split for record in open_source(tmp_path, hold_out=0.5).records()]
    assert 15 < share.count("test") < 45
    with pytest.raises(ConfigError, match="hold_out: no image of scene 'attic'"):
        list(open_source(tmp_path, hold_out=["attic"]).records())


def test_depth_source_refuses_missing_or_broken_cameras(tmp_path: Path) -> None:
    frame(tmp_path, "a", wall())
    open_source(tmp_path)
    with pytest.raises(ConfigError, match=f"cameras: there is no file {tmp_path}/cameras.json"):
        open_source(tmp_path, normals="from_depth")
    cameras(tmp_path, scenes={"hall": {"fx": 40, "fy": 40, "cx": 15}})
    with pytest.raises(ConfigError, match=r"cameras.json: scenes.hall.cy: Field required"):
        open_source(tmp_path)
    cameras(tmp_path, scenes={"hall": CAMERA | {"fx": 0}})
    with pytest.raises(ConfigError, match="must be positive"):
        open_source(tmp_path)


def test_depth_source_file_stamps_cover_images_depth_and_cameras(tmp_path: Path) -> None:
    frame(tmp_path, "a", wall())
    cameras(tmp_path)
    assert [row[0] for row in open_source(tmp_path).file_stamps()] == ["cameras.json", "depth/a.png", "rgb/a.jpg"]
