"""Images with several labels in files of the same stem: any of `masks/<stem>.png`, `depth/<stem>.png`,
`normals/<stem>.png` and, of any other numbers, `arrays/<stem>.npy`.

The files of masks, depth and normals are those of the kinds `masks`, `depth` and `normals`. Arrays are labels for the
task `regression`: elevation, an index, near infrared, or, if they are not `aligned`, what does not lie over the image,
as the spectrogram of a sound. An image may lack any of its labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.sources._arrays import ArrayKeys, ArrayReader
from pipeline.sources._depth import DepthKeys, DepthReader
from pipeline.sources._masks import MaskKeys, MaskReader
from pipeline.sources._normals import NormalKeys, NormalReader
from pipeline.sources._raster_search import find_rasters
from pipeline.sources._rasters import RasterConfig, RasterFolder, RasterSource
from pipeline.storage.path import StoragePath

FROM_DEPTH = "from_depth"


class Config(RasterConfig, MaskKeys, DepthKeys, NormalKeys, ArrayKeys):
    """Folders of images, masks, depth maps, normal maps and arrays below `path`."""

    later_keys = RasterConfig.later_keys | {"arrays", *ArrayKeys.__annotations__}
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
    arrays: str | None = None
    """Folder of the arrays, relative to `path`, which may have `{split}` as well."""


class Source(RasterSource):
    """Reads the folders. Raises ConfigError if a path does not exist, or on what the kind of a label refuses."""

    def __init__(self, config: Config) -> None:
        if not (config.masks or config.depth or config.normals or config.arrays):
            kinds = "masks, depth, normals, arrays"
            raise ConfigError(f"{kinds}: name the folder of one of them; images alone are `kind: folder`")
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
        if config.arrays:
            labels.append(RasterFolder("arrays", config.arrays, config.array_suffix, ArrayReader(config)))
        super().__init__(config, ("images", config.images), labels, files)

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        layout = find_rasters(path)
        return layout.settings({"images": "images"}) if layout and len(layout.folders) > 1 else None
