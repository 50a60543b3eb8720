"""Images and normal maps: `images/<stem>.jpg` with `normals/<stem>.png`, in any folders; black = unknown.

Normal maps are PNG or TIFF in colours, red growing to the right, green upwards and blue towards the camera; or NumPy's
`.npy` or `.npz` with one array (height, width, 3) of parts from -1 to 1, `.pfm`, or `.exr` with the extra `exr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.sources._normals import NormalKeys, NormalReader
from pipeline.sources._raster_search import NORMALS, find_rasters
from pipeline.sources._rasters import RasterConfig, RasterFolder, RasterSource


class Config(RasterConfig, NormalKeys):
    """Folders of images and normal maps below `path`."""

    kind: Literal["normals"] = "normals"
    images: str = "images"
    """Folder of the images, relative to `path`. `{split}` in it stands for train, val, test and the like, as in
    `{split}_images`; `train/images` is found without it."""
    normals: str = "normals"
    """Folder of the normal maps, relative to `path`, which may have `{split}` as well."""


class Source(RasterSource):
    """Reads the folders. Raises ConfigError if a path does not exist."""

    def __init__(self, config: Config) -> None:
        normals = RasterFolder("normals", config.normals, config.normals_suffix, NormalReader(config))
        super().__init__(config, ("images", config.images), [normals])

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        layout = find_rasters(path)
        if layout and list(layout.folders) == [NORMALS]:
            return layout.settings({"images": "images", NORMALS: "normals"})
        return None
