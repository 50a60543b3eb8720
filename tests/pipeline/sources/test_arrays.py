"""Arrays of a set of rasters: units, unknown numbers, channels, and arrays that don't lie over the image."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import DataError
from pipeline.sources import TrueLabels, rasters
from pipeline.stores.labels import LabelSpace

SIZE = (6, 4)
HEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


def write_pair(root: Path, name: str, numbers: NDArray[Any]) -> None:
    for folder in ("images", "dem"):
        (root / folder).mkdir(exist_ok=True)
    Image.new("RGB", SIZE).save(root / f"images/{Path(name).stem}.jpg")
    file = root / "dem" / name
    if file.suffix == ".npy":
        np.save(file, numbers)
    else:
        Image.fromarray(numbers).save(file)


def open_source(root: Path, **options: Any) -> rasters.Source:
    return rasters.Source(rasters.Config.model_validate({"path": str(root), "arrays": "dem", **options}))


def values_of(root: Path, **options: Any) -> NDArray[np.float32]:
    (record,) = open_source(root, **options).records()
    found: NDArray[np.float32] = record.truth(SIZE).values["regression"]["values"]
    assert found.dtype == np.float32
    return found


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
def test_rasters_source_reads_arrays_at_their_own_size(name: str, tmp_path: Path) -> None:
    write_pair(tmp_path, name, HEIGHTS)
    np.testing.assert_array_equal(values_of(tmp_path), HEIGHTS[..., None])
    assert open_source(tmp_path).spaces() == {"regression": LabelSpace("regression", ("value",))}


def test_rasters_source_states_unit_channels_and_alignment(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.npy", np.stack([HEIGHTS, -HEIGHTS], axis=-1))
    options = {"array_channels": ["height", "slope"], "unit": "m", "aligned": False}
    spaces = open_source(tmp_path, **options).spaces()
    assert spaces == {"regression": LabelSpace("regression", ("height", "slope"), unit="m", aligned=False)}
    assert values_of(tmp_path, **options).shape == (2, 3, 2)


def test_rasters_source_turns_whole_numbers_into_the_unit(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.png", np.array([[0, 250, 65535]] * 2, np.uint16))
    found = values_of(tmp_path, factor=0.1, unknown=65535)
    np.testing.assert_allclose(found[0, :, 0], [0, 25, np.nan], rtol=1e-6)


def test_rasters_source_takes_what_is_not_finite_for_unknown(tmp_path: Path) -> None:
    numbers = HEIGHTS.astype(np.float64)
    numbers[0] = np.nan, np.inf, -np.inf
    write_pair(tmp_path, "a.npy", numbers)
    np.testing.assert_array_equal(values_of(tmp_path)[..., 0], [[np.nan] * 3, HEIGHTS[1]])


def truth_of(root: Path, **options: Any) -> TrueLabels:
    (record,) = open_source(root, **options).records()
    return record.truth(SIZE)


def write_tiff(root: Path, numbers: NDArray[Any], unknown: str) -> None:
    write_pair(root, "a.tif", HEIGHTS)
    tifffile.imwrite(root / "dem/a.tif", numbers, extratags=[(42113, "s", 0, unknown, True)])


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.int32, np.float64])
def test_rasters_source_takes_what_a_tiff_states_for_unknown(dtype: Any, tmp_path: Path) -> None:
    numbers = HEIGHTS.astype(dtype)
    numbers[0, 1] = -9999
    write_tiff(tmp_path, numbers, "-9999")
    for options in ({}, {"unknown": -9999}):
        np.testing.assert_array_equal(values_of(tmp_path, **options)[0, :, 0], [0, np.nan, 2])
    with pytest.raises(DataError, match=r"states that -9999 is unknown \(GDAL_NODATA\), and .* `unknown` is 0"):
        values_of(tmp_path, unknown=0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
def test_rasters_source_knows_a_stated_number_in_any_type(dtype: Any, tmp_path: Path) -> None:
    numbers = HEIGHTS.astype(dtype)
    numbers[0, 1] = 0.1
    write_pair(tmp_path, "a.npy", numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not np.isnan(values_of(tmp_path, unknown=1e6)).any()
        assert np.isnan(values_of(tmp_path, unknown=0.1)).sum() == (dtype is not np.uint8)


@pytest.mark.parametrize(("large", "factor"), [(-3.4e38, 1), (1e31, 1e-6), (1e25, 1e10), (1e300, 1)])
def test_rasters_source_counts_numbers_that_are_too_large(large: float, factor: float, tmp_path: Path) -> None:
    numbers = HEIGHTS.astype(np.float64)
    numbers[0] = np.nan, large, -large
    write_pair(tmp_path, "a.npy", numbers)
    truth = truth_of(tmp_path, factor=factor)
    assert truth.notes == ["numbers above 1e+30 in size are unknown: 2 numbers"]
    expected = np.array([np.nan] * 3 + [3, 4, 5]) * factor
    np.testing.assert_allclose(truth.values["regression"]["values"].ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "options", "message"),
    [
        (np.zeros((4, 6, 2)), {}, r"holds 2 numbers in each cell; `array_channels` names 1 \(value\)"),
        (np.zeros((2, 32, 32)), {"array_channels": ["a", "b"], "aligned": False}, r"\(2, 32, 32\), not .* last"),
        (HEIGHTS.T, {}, "it is 2x3, the upright image 6x4"),
        (np.ones((4, 6)), {"factor": 1e300}, r"all of its numbers are above 1e\+30 in size times `factor` 1e\+300"),
        (np.full((4, 6), -9999.0), {"unknown": -9999}, "all of its numbers are unknown"),
    ],
    ids=["channels", "first", "shape", "factor", "unknown"],
)
def test_rasters_source_refuses_arrays(numbers: NDArray[Any], options: Any, message: str, tmp_path: Path) -> None:
    write_pair(tmp_path, "a.npy", numbers)
    with pytest.raises(DataError, match=message):
        values_of(tmp_path, **options)


def test_rasters_source_takes_arrays_of_any_shape_that_are_not_aligned(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.npy", HEIGHTS.T)
    assert values_of(tmp_path, aligned=False).shape == (3, 2, 1)


def test_rasters_config_refuses_a_factor_of_nothing() -> None:
    with pytest.raises(ValidationError, match="all numbers times 0 are 0; leave `factor` out"):
        rasters.Config.model_validate({"path": "a", "arrays": "dem", "factor": 0})


@pytest.mark.parametrize("shape", [(1, 100, 13), (3, 40, 2), (1, 9, 3)], ids=str)
def test_rasters_source_takes_arrays_of_few_rows(shape: tuple[int, int, int], tmp_path: Path) -> None:
    write_pair(tmp_path, "a.npy", np.ones(shape))
    named = [f"c{number}" for number in range(shape[2])]
    assert values_of(tmp_path, aligned=False, array_channels=named).shape == shape


@pytest.mark.parametrize("channels", [[], ["a", "a"], [str(number) for number in range(17)]], ids=len)
def test_rasters_config_refuses_channels(channels: list[str]) -> None:
    with pytest.raises(ValidationError, match="channels"):
        rasters.Config.model_validate({"path": "a", "arrays": "dem", "array_channels": channels})
