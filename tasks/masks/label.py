"""Labels of instance segmentation on disk and drawn: scored boxes with classes, and the mask of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipeline.stores.labels import Row, Value
from pipeline.stores.rasters import FULL_IMAGE, Box
from pipeline.stores.rle import (
    Size,
    contains,
    decode_mask,
    encode_mask,
    mask_area,
    mask_overlaps,
    resize_masks,
    rle_array,
    surest_objects,
)
from tasks.drawing import contours, palette
from tasks.instances import InstanceLabel

OPACITY = 0.45
"""Of the color on the pixels of an object."""


class TaskLabel(InstanceLabel):
    """`boxes`, `scores`, `classes` and `size` as of detection; `masks` (N,) bytes, the pixels of each object as COCO's
    compressed run lengths, which `pipeline.stores.rle.decode_mask` turns into (height, width) bool.

    Stored without loss, masks pixel by pixel. A mask has a pixel at least; it may reach beyond its box, and masks may
    overlap. Nothing can be unknown: N = 0 states that the image shows none of the classes. A threshold drops objects
    that are less probable. An object's probability is the precision at a mask IoU of 0.5 of objects with its score.
    """

    task = "masks"
    noun = "mask", "masks"
    unit = "objects (masks by their probability)"

    def columns(self) -> pa.Schema:
        masks = pa.field("masks", pa.list_(pa.string()), metadata={"about": "COCO's compressed RLE"})
        areas = pa.field("areas", pa.list_(pa.int64()), metadata={"about": "of the masks, pixels"})
        return pa.schema([*super().columns(), masks, areas])

    def encode(self, value: Value) -> Row:
        masks, size = value["masks"].tolist(), image_size(value)
        areas = [mask_area(mask, size) for mask in masks]
        return {**super().encode(value), "masks": [mask.decode("ascii") for mask in masks], "areas": areas}

    def _objects(self, row: Row) -> Value:
        value = super()._objects(row)
        masks = [mask.encode("ascii") for mask in _entries(row["masks"])]
        if len(masks) != len(value["boxes"]):
            raise ValueError(f"{len(masks)} masks of {len(value['boxes'])} boxes")
        areas = [mask_area(mask, image_size(value)) for mask in masks]
        if areas != list(_entries(row["areas"])) or 0 in areas:
            raise ValueError("masks that have other areas than stated, or none")
        return {**value, "masks": rle_array(masks)}

    def _select(self, value: Value, keep: NDArray[np.bool_]) -> Value:
        selected = super()._select(value, keep)
        return {**selected, "masks": rle_array(selected["masks"])}

    def flip(self, value: Value) -> Value:
        masks = (decode_mask(mask, image_size(value)) for mask in value["masks"])
        return {**super().flip(value), "masks": rle_array(encode_mask(mask[:, ::-1]) for mask in masks)}

    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        """Crop boxes as those of detection, and masks; drop objects of which no pixel is left as well."""
        cropped = super().crop(value, box, size)
        masks = resize_masks(cropped["masks"], image_size(value), box, (size[1], size[0]))
        areas = np.array([mask_area(mask, (size[1], size[0])) for mask in masks], dtype=np.int64)
        return self._select({**cropped, "masks": masks}, areas > 0)

    def draw(self, image: Image.Image, value: Value) -> Image.Image:
        surest = surest_objects(value, image.size)
        colors = palette(len(self.space.classes))[value["classes"]]
        pixels, inside = np.array(image), surest >= 0
        pixels[inside] = (1 - OPACITY) * pixels[inside] + OPACITY * colors[surest[inside]]
        return super().draw(Image.fromarray(pixels), value)

    def _outline(self, image: Image.Image, value: Value, dashed: bool = False) -> None:
        """Draw the contours of the masks in the colors of their classes."""
        surest = surest_objects(value, image.size)
        edges = contours(surest, image.size, dashed) & (surest >= 0)
        colors = palette(len(self.space.classes))[value["classes"]]
        pixels = np.array(image)
        pixels[edges] = colors[surest[edges]]
        image.paste(Image.fromarray(pixels))

    def _at(self, value: Value, point: tuple[float, float]) -> NDArray[np.intp]:
        """Return the indices of the objects whose masks have the pixel at `point`."""
        (width, height), masks = image_size(value), value["masks"]
        x, y = min(int(point[0] * width), width - 1), min(int(point[1] * height), height - 1)
        return np.flatnonzero([contains(mask, (width, height), x, y) for mask in masks])

    @staticmethod
    def overlaps(one: Value, other: Value) -> NDArray[np.float64]:
        """Return the intersection over union (N, M) of masks, at the size of the image of `other`."""
        return overlaps(one, other)


def overlaps(one: Value, other: Value) -> NDArray[np.float64]:
    """Return the intersection over union (N, M) of the masks of two labels, at the size of the image of `other`."""
    size = image_size(other)
    masks = resize_masks(one["masks"], image_size(one), FULL_IMAGE, size)
    return mask_overlaps(masks.tolist(), other["masks"].tolist(), size)


def image_size(value: Value) -> Size:
    """Return (width, height) of the image that a label was made for, pixels."""
    width, height = value["size"].tolist()
    return width, height


def _entries(column: Any) -> list[Any]:
    """Return the entries of a list column of a row. Raises ValueError for one that is null."""
    if column is None or any(entry is None for entry in column):
        raise ValueError("a mask that is null")
    return list(column)
