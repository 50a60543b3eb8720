"""Depth maps: distances along the optical axis, or their inverse, as images, NumPy's arrays, PFM or OpenEXR.

The scene of an image is the beginning of its file's stem: `kitchen_0007.jpg` and `kitchen/0007.jpg` belong to the scene
`kitchen`. A JSON file has the camera of each scene:

    {"unit": "millimetre", "unknown": 0, "scenes": {"kitchen": {"fx": 292.5, "fy": 292.5, "cx": 160, "cy": 120}}}

Intrinsics are in pixels of the depth map, null if unknown; the scene "" stands for images of no other scene.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.data.arrays import ARRAY_SUFFIXES, LARGEST, decode_array, holds
from pipeline.data.normals import PinholeCamera, normals_from_depth
from pipeline.data.tiff import stated_unknown
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.base import BaseConfig
from pipeline.sources import TrueLabels
from pipeline.sources._files import IMAGE_SUFFIXES, check_size
from pipeline.sources._rasters import RasterReader, in_scene
from pipeline.storage.json_text import decode_json
from pipeline.storage.path import StoragePath, require_exists
from pipeline.stores.labels import LabelSpace
from pipeline.stores.rasters import FULL_IMAGE, resample_nearest

UNITS_M = {"millimetre": 0.001, "centimetre": 0.01, "metre": 1.0}
WHOLE_UNIT_M, FLOAT_UNIT_M = 0.001, 1.0
"""Metres per unit of whole numbers, and of floating-point ones, if nothing states it."""
SAME_ASPECT = 0.01
"""Relative difference below which aspect ratios are the same, as those of 1296x968 and 640x480 pixels."""
FARTHEST_M = 65_504.0
"""The largest float16."""
TOO_FAR = f"depth beyond {FARTHEST_M:g} m is unknown"
TOO_LARGE = f"numbers above {LARGEST:g} in size are unknown"
RASTER_SUFFIXES = (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)
Floats = NDArray[np.float32]


class DepthKeys(BaseConfig):
    """The keys that say what the numbers in depth maps mean."""

    depth_suffix: str | None = None
    """End of the depth maps' stems that is not part of the images': `_depth` of `x_depth.png`."""
    cameras: str = "cameras.json"
    """JSON file of intrinsics, relative to `path`; only needed for normals."""
    unit_m: Annotated[float, Field(gt=0)] | None = None
    """Metres per unit of the numbers in the files. By default what the file of cameras states, or else 0.001 for whole
    numbers (millimetres) and 1 for floating-point ones."""
    inverse: bool = False
    """True for inverse depth or disparity: metres are `unit_m` / number, so that `unit_m` has to be stated. Of
    disparities in pixels it is the focal length in pixels times the baseline in metres."""
    scale: Literal["metric", "relative"] = "metric"
    """Meaning of the numbers: distance along the optical axis, or inverse depth up to a scale and shift per image."""


class Cameras(BaseModel):
    """The content of a file of cameras."""

    model_config = ConfigDict(allow_inf_nan=False)

    unit: Literal["millimetre", "centimetre", "metre"] | None = None
    unknown: float = 0
    scenes: dict[str, PinholeCamera | None] = Field(default_factory=dict)


class DepthReader(RasterReader):
    """Reads depth maps, and derives normals. Raises ConfigError if options contradict each other or the cameras."""

    noun = "depth map"
    suffixes = RASTER_SUFFIXES

    def __init__(self, keys: DepthKeys, root: StoragePath, derive_normals: bool) -> None:
        self.keys, self.derive_normals = keys, derive_normals
        if derive_normals and keys.scale == "relative":
            raise ConfigError("normals: 'from_depth' needs distances, and scale is 'relative'; set scale: metric")
        if keys.inverse and keys.scale == "relative":
            raise ConfigError("inverse: scale 'relative' is of inverse depth already; leave `inverse` out")
        if keys.inverse and keys.unit_m is None:
            raise ConfigError("inverse: metres are unit_m / number; state `unit_m`, or set scale: relative")
        file = root / keys.cameras
        needed = derive_normals or keys.cameras != DepthKeys.model_fields["cameras"].default
        self.files = [require_exists(file, "cameras", "file")] if needed or file.exists() else []
        self.cameras = _read_cameras(file) if self.files else Cameras()
        unit, stated = self.cameras.unit, keys.unit_m
        contradicts = unit and stated and not np.isclose(UNITS_M[unit], stated)
        if keys.scale == "metric" and contradicts and not keys.inverse:
            raise ConfigError(f"unit_m: {stated} contradicts {file}, by which the unit is the {unit}")

    def spaces(self) -> dict[str, LabelSpace]:
        spaces = {"depth": LabelSpace("depth", (), self.keys.scale)}
        if self.derive_normals:
            spaces["normals"] = LabelSpace("normals")
        return spaces

    def read(self, file: StoragePath, name: str, size: tuple[int, int]) -> TrueLabels:
        truth = TrueLabels()
        depth = self._read_depth(file, size, truth)
        truth.values["depth"] = {"depth": resample_nearest(depth, FULL_IMAGE, size[::-1], 0)}
        if self.derive_normals:
            self._add_normals(truth, depth, name, size)
        return truth

    def _read_depth(self, file: StoragePath, size: tuple[int, int], truth: TrueLabels) -> Floats:
        """Return the depth map (H, W) at its own size; its aspect ratio has to be that of the image's `size`."""
        data = file.read()
        numbers = decode_array(data, file.suffix)
        if numbers.ndim != 2:
            raise DataError(f"holds {numbers.shape[2]} numbers for each pixel, not one")
        check_aspect(numbers, size)
        stated = stated_unknown(data)
        unknown = (self.cameras.unknown if stated is None else stated, self.cameras.unknown)
        known = (numbers > 0) & np.isfinite(numbers) & ~np.any([holds(numbers, each) for each in unknown], axis=0)
        too_large = known & (numbers > LARGEST)
        if too_large.any() and (self.keys.inverse or self.keys.scale == "relative"):  # of metres, _drop_far says more
            truth.notes.append(f"{TOO_LARGE}: {int(too_large.sum()):,} numbers")
            known &= ~too_large
        if not known.any():
            raise DataError("all of its depth is unknown")
        if self.keys.scale == "relative":
            # the scale is arbitrary, and 16-bit numbers would not fit into a float16
            return (np.where(known, numbers, 0) / numbers[known].max()).astype(np.float32)
        return _drop_far(self._metres(numbers, known), truth)

    def _metres(self, numbers: NDArray[Any], known: NDArray[np.bool_]) -> Floats:
        """Return numbers in metres, 0 where they are not known."""
        if self.keys.inverse:
            assert self.keys.unit_m
            return np.divide(self.keys.unit_m, numbers, out=np.zeros(numbers.shape), where=known).astype(np.float32)
        unit = self.keys.unit_m or UNITS_M.get(self.cameras.unit or "")
        unit = unit or (FLOAT_UNIT_M if numbers.dtype.kind == "f" else WHOLE_UNIT_M)
        return np.where(known, numbers, 0).astype(np.float32) * np.float32(unit)

    def _add_normals(self, truth: TrueLabels, depth: Floats, name: str, size: tuple[int, int]) -> None:
        scenes = [scene for scene in self.cameras.scenes if in_scene(name, scene)]
        camera = self.cameras.scenes[max(scenes, key=len)] if scenes else None
        if camera is None:
            truth.notes.append("no normals: no intrinsics")
            return
        normals = normals_from_depth(depth, camera)
        if not normals.any():
            truth.notes.append("no normals: no surface in the depth map")
            return
        truth.values["normals"] = {"normals": resample_nearest(normals, FULL_IMAGE, size[::-1], 0)}


def check_aspect(raster: NDArray[Any], size: tuple[int, int]) -> None:
    """Raise DataError unless a raster (H, W, ...) has the aspect ratio of the upright image of `size`."""
    height, width = raster.shape[:2]
    if abs(width * size[1] / (height * size[0]) - 1) > SAME_ASPECT:
        check_size((width, height), size, "it is")


def _drop_far(depth: Floats, truth: TrueLabels) -> Floats:
    """Return depth with 0 for what is too far to be stored: renderers write a huge number for the sky.

    Raises DataError if that is most of it.
    """
    far = depth > FARTHEST_M
    if not far.any():
        return depth
    if far.sum() * 2 > (depth > 0).sum():
        farthest = float(depth.max())
        raise DataError(f"reaches {farthest:g} m, but at most {FARTHEST_M:g} m can be stored: is `unit_m` right?")
    truth.notes.append(TOO_FAR)
    return np.where(far, np.float32(0), depth)


def _read_cameras(file: StoragePath) -> Cameras:
    try:
        return Cameras.model_validate_json(decode_json(file.read()))
    except UnicodeDecodeError as error:
        raise ConfigError(f"cameras: {file}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"cameras: {file}: {key or 'the file'}: {first['msg']}") from error
