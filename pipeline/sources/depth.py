"""Images and depth maps: `rgb/<stem>.jpg` with `depth/<stem>.png`, or in other folders; optionally with normals.

Depth maps are PNG or TIFF, NumPy's `.npy` or `.npz` with one array, `.pfm`, or `.exr` with the extra `exr`. What is not
finite, and 0, is unknown. `_depth.py` says how a file states the cameras that normals are derived with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.sources._depth import DepthKeys, DepthReader
from pipeline.sources._detection import has_folders
from pipeline.sources._raster_search import DEPTH, find_rasters
from pipeline.sources._rasters import RasterConfig, RasterFolder, RasterSource
from pipeline.storage.path import StoragePath


class Config(RasterConfig, DepthKeys):
    """Folders of images and depth maps below `path`."""

    kind: Literal["depth"] = "depth"
    rgb: str = "rgb"
    """Folder of the images, relative to `path`. `{split}` in it stands for train, val, test and the like, as in
    `{split}_rgb`; `train/rgb` is found without it."""
    depth: str = "depth"
    """Folder of the depth maps, relative to `path`, which may have `{split}` as well."""
    normals: Literal["none", "from_depth"] = "none"
    """`from_depth` derives normals from the depth of scenes whose camera is known."""


class Source(RasterSource):
    """Reads the folders. Raises ConfigError if a path does not exist or options contradict the file of cameras."""

    def __init__(self, config: Config) -> None:
        reader = DepthReader(config, StoragePath.of(config.path), config.normals == "from_depth")
        depth = RasterFolder("depth", config.depth, config.depth_suffix, reader)
        super().__init__(config, ("rgb", config.rgb), [depth], reader.files)

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        layout = find_rasters(path)
        if layout and list(layout.folders) == [DEPTH]:
            return layout.settings({"rgb": "rgb", DEPTH: "depth"})
        return {} if has_folders(path, "rgb", "depth") else None
