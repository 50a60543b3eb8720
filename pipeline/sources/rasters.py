"""Images with several labels in files of the same stem: any of `masks/<stem>.png`, `depth/<stem>.png` and
`normals/<stem>.png`.

The files are those of the kinds `masks`, `depth` and `normals`. An image may lack any of its labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.sources._depth import DepthKeys, DepthReader
from pipeline.sources._masks import MaskKeys, MaskReader
from pipeline.sources._normals import NormalKeys, NormalReader
from pipeline.sources._raster_search import find_rasters
from pipeline.sources._rasters import RasterConfig, RasterFolder, RasterSource
from pipeline.storage.path import StoragePath

FROM_DEPTH = "from_depth"


class Config(RasterConfig, MaskKeys, DepthKeys, NormalKeys):
    """Folders of images, masks, depth maps and normal maps below `path`."""

    kind: Literal["rasters"] = "rasters"
    images: str = "images"
    """Folder of the images, relative to `path`. `{split}` in it stands for train, val, test and the like, as in
    `{split}_images`; `train/images` is found without it."""
    masks: str | None = None
    """Folder of the masks, relative to `path`, which may have `{split}` as well."""
    depth: str | None = None
    """Folder of the depth maps, relative to `path`, which may have `{split}` as well."""
    normals: str | None = None
    """Folder of the normal maps, relative to `path`, which may have `{split}` as well; or `from_depth`, which derives
    normals from the depth of scenes whose camera is known."""


class Source(RasterSource):
    """Reads the folders. Raises ConfigError if a path does not exist, or on what the kind of a label refuses."""

    def __init__(self, config: Config) -> None:
        if not (config.masks or config.depth or config.normals):
            raise ConfigError("masks, depth, normals: name the folder of one of them; images alone are `kind: folder`")
        if config.normals == FROM_DEPTH and not config.depth:
            raise ConfigError("normals: 'from_depth' needs the folder of the depth maps as `depth`")
        root, labels, files = StoragePath.of(config.path), list[RasterFolder](), list[StoragePath]()
        if config.masks:
            masks = MaskReader(config, root)
            labels.append(RasterFolder("masks", config.masks, config.mask_suffix, masks))
            files += masks.files
        if config.depth:
            depth = DepthReader(config, root, config.normals == FROM_DEPTH)
            labels.append(RasterFolder("depth", config.depth, config.depth_suffix, depth))
            files += depth.files
        if config.normals and config.normals != FROM_DEPTH:
            labels.append(RasterFolder("normals", config.normals, config.normals_suffix, NormalReader(config)))
        super().__init__(config, ("images", config.images), labels, files)

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        layout = find_rasters(path)
        return layout.settings({"images": "images"}) if layout and len(layout.folders) > 1 else None
