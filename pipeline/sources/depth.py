"""Images and depth maps: `rgb/<stem>.jpg` with `depth/<stem>.png`, 16 bits, 0 = unknown; optionally with normals.

The scene of an image is the beginning of its file's stem: `kitchen_0007.jpg` and `kitchen/0007.jpg` belong to the scene
`kitchen`. A JSON file has the camera of each scene:

    {"unit": "millimetre", "unknown": 0, "scenes": {"kitchen": {"fx": 292.5, "fy": 292.5, "cx": 160, "cy": 120}}}

Intrinsics are in pixels of the depth map, null if unknown; the scene "" stands for images of no other scene.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.data.decode import decode_numbers
from pipeline.data.normals import PinholeCamera, normals_from_depth
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import SourceRecord, TrueLabels
from pipeline.sources._detection import has_folders
from pipeline.sources._files import FileSource, check_size, read_image
from pipeline.sources._splits import Split, split_by_hash
from pipeline.storage.json_text import decode_json
from pipeline.storage.path import StoragePath, require_exists
from pipeline.stores.labels import LabelSpace
from pipeline.stores.rasters import FULL_IMAGE, resample_nearest

UNITS_M = {"millimetre": 0.001, "centimetre": 0.01, "metre": 1.0}
SAME_ASPECT = 0.01
"""Relative difference below which aspect ratios are the same, as those of 1296x968 and 640x480 pixels."""
FARTHEST_M = 65_504.0
"""The largest float16."""
Floats = NDArray[np.float32]


class Config(SourceConfig):
    """Folders of images and depth maps below `path`."""

    kind: Literal["depth"] = "depth"
    path: str
    """Folder or URL."""
    rgb: str = "rgb"
    """Folder of the images, relative to `path`."""
    depth: str = "depth"
    """Folder of the depth maps, relative to `path`."""
    cameras: str = "cameras.json"
    """JSON file of intrinsics, relative to `path`; only needed for normals."""
    unit_m: Annotated[float, Field(gt=0)] = 0.001
    """Metres per unit of the numbers in the files."""
    scale: Literal["metric", "relative"] = "metric"
    """Meaning of the numbers: distance along the optical axis, or inverse depth up to a scale and shift per image."""
    normals: Literal["none", "from_depth"] = "none"
    """`from_depth` derives normals from the depth of scenes whose camera is known."""
    hold_out: Share | tuple[str, ...] = 0.2
    """The scenes that become `test`, or the share of images that does, by the hash of the file's name. Frames of one
    scene are alike: only held-out scenes measure how well a new room is predicted."""


class Cameras(BaseModel):
    """The content of a file of cameras."""

    model_config = ConfigDict(allow_inf_nan=False)

    unit: Literal["millimetre", "centimetre", "metre"] | None = None
    unknown: float = 0
    scenes: dict[str, PinholeCamera | None] = Field(default_factory=dict)


class Source(FileSource):
    """Reads the folders. Raises ConfigError if a path does not exist or options contradict the file of cameras."""

    def __init__(self, config: Config) -> None:
        self.config = config
        root = require_exists(StoragePath.of(config.path), "path", "folder")
        self.rgb = require_exists(root / config.rgb, "rgb", "folder")
        super().__init__(root, [self.rgb, require_exists(root / config.depth, "depth", "folder")])
        if config.normals == "from_depth" and config.scale == "relative":
            raise ConfigError("normals: 'from_depth' needs distances, and scale is 'relative'; set scale: metric")
        file = root / config.cameras
        needed = config.normals == "from_depth" or config.cameras != Config.model_fields["cameras"].default
        self.files = [require_exists(file, "cameras", "file")] if needed or file.exists() else []
        self.cameras = _read_cameras(file) if self.files else Cameras()
        unit = self.cameras.unit
        if config.scale == "metric" and unit and not np.isclose(UNITS_M[unit], config.unit_m):
            raise ConfigError(f"unit_m: {config.unit_m} contradicts {file}, by which the unit is the {unit}")

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        if not has_folders(path, "rgb", "depth"):
            return None
        # normals can be computed from depth and the cameras' intrinsics
        return {"normals": "from_depth"} if (StoragePath.of(path) / "cameras.json").exists() else {}

    def spaces(self) -> dict[str, LabelSpace]:
        spaces = {"depth": LabelSpace("depth", (), self.config.scale)}
        if self.config.normals == "from_depth":
            spaces["normals"] = LabelSpace("normals")
        return spaces

    def read_records(self) -> Iterator[SourceRecord]:
        pairs = self._pair_files("depth map")
        self._check_hold_out([image.relative_to(self.rgb) for image, _ in pairs])
        for image, depth in pairs:
            name = image.relative_to(self.rgb)
            truth = functools.partial(self._truth, depth, name)
            yield SourceRecord(
                image.relative_to(self.root),
                self._scene_split(name),
                functools.partial(read_image, image),
                truth,
                image.stamp,
            )

    def _check_hold_out(self, names: list[str]) -> None:
        for scene in self.config.hold_out if isinstance(self.config.hold_out, tuple) else ():
            if not any(in_scene(name, scene) for name in names):
                example = f"; the first image is {names[0]!r}" if names else ""
                raise ConfigError(f"hold_out: no image of scene {scene!r} under {self.rgb}{example}")

    def _scene_split(self, name: str) -> Split:
        if isinstance(self.config.hold_out, tuple):
            return "test" if any(in_scene(name, scene) for scene in self.config.hold_out) else "train"
        return split_by_hash(name, self.config.hold_out)

    def _truth(self, file: StoragePath | None, name: str, size: tuple[int, int]) -> TrueLabels:
        if file is None:
            return TrueLabels(notes=["no depth map"])
        try:
            depth = self._read_depth(file, size)
        except DataError as error:
            raise DataError(f"depth map {file.relative_to(self.root)}: {error}") from error
        truth = TrueLabels({"depth": {"depth": resample_nearest(depth, FULL_IMAGE, size[::-1], 0)}})
        if self.config.normals == "from_depth":
            self._add_normals(truth, depth, name, size)
        return truth

    def _read_depth(self, file: StoragePath, size: tuple[int, int]) -> Floats:
        """Return the depth map (H, W) at its own size; its aspect ratio has to be that of the image's `size`."""
        numbers = decode_numbers(file.read())
        height, width = numbers.shape
        if abs(width * size[1] / (height * size[0]) - 1) > SAME_ASPECT:
            check_size((width, height), size, "it is")
        known = (numbers > 0) & (numbers != self.cameras.unknown) & np.isfinite(numbers)
        if not known.any():
            raise DataError("all of its depth is unknown")
        numbers = np.where(known, numbers, 0).astype(np.float32)
        if self.config.scale == "relative":
            return numbers / numbers.max()  # the scale is arbitrary, and 16-bit numbers would not fit into a float16
        depth = numbers * np.float32(self.config.unit_m)
        farthest = float(depth.max())
        if farthest > FARTHEST_M:
            raise DataError(f"reaches {farthest:g} m, but at most {FARTHEST_M:g} m can be stored: is `unit_m` right?")
        return depth

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


def in_scene(name: str, scene: str) -> bool:
    """Return True if the file `name` begins with `scene`, and not with a longer word: `hall_1`, but not `hallway_1`."""
    rest = name.removeprefix(scene)
    return name.startswith(scene) and not (scene and scene[-1].isalnum() and rest[:1].isalnum())


def _read_cameras(file: StoragePath) -> Cameras:
    try:
        return Cameras.model_validate_json(decode_json(file.read()))
    except UnicodeDecodeError as error:
        raise ConfigError(f"cameras: {file}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"cameras: {file}: {key or 'the file'}: {first['msg']}") from error
