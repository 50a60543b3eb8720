"""Images and masks of classes, pixel by pixel: `images/x.jpg` with `masks/x.png`, in any folders, with or without
splits.

A mask is a one-channel image of class ids of 8 or 16 bits or the indices of a palette; an image whose `colors` stand
for classes; or a grey one with a `threshold` between two classes. An image without a mask has no label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.sources._detection import has_folders
from pipeline.sources._masks import MaskKeys, MaskReader
from pipeline.sources._raster_search import MASKS, find_rasters
from pipeline.sources._rasters import RasterConfig, RasterFolder, RasterSource
from pipeline.storage.path import StoragePath


class Config(RasterConfig, MaskKeys):
    """Folders of images and of masks below `path`."""

    kind: Literal["masks"] = "masks"
    images: str = "images"
    """Folder of the images, relative to `path`. `{split}` in it stands for train, val, test and the like, as in
    `{split}_images`; `train/images` is found without it."""
    masks: str = "masks"
    """Folder of the masks, relative to `path`, which may have `{split}` as well."""


class Source(RasterSource):
    """Reads the folders. Raises ConfigError if a path does not exist or the classes can't be read."""

    def __init__(self, config: Config) -> None:
        reader = MaskReader(config, StoragePath.of(config.path))
        masks = RasterFolder("masks", config.masks, config.mask_suffix, reader)
        super().__init__(config, ("images", config.images), [masks], reader.files)

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        layout = find_rasters(path)
        if layout and list(layout.folders) == [MASKS]:
            return layout.settings({"images": "images", MASKS: "masks"})
        return {} if has_folders(path, "images", "masks") else None
