"""Instance segmentation: Mask R-CNN (He et al., ICCV 2017) on P3 to P7, from torchvision's parts; COCO AP of masks.

Detection's proposals and box head, and for each detected box a mask of 28 x 28 cells from the same levels P3 to P5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from pipeline.data.augment import Placement, ValidSizes
from pipeline.stores.labels import Value
from pipeline.stores.rasters import FULL_IMAGE, linear_weights
from pipeline.stores.rle import Size, as_coco, decode_mask, encode_mask, mask_area, resize_masks, rle_array
from tasks.average_precision import Annotation, Shapes
from tasks.masks.label import image_size, overlaps
from tasks.rcnn import DetectionHead, Pending, RCNNTask, WholeImageAlign
from tasks.task import FeatureInfo, Prediction, Target

POOL_SIZE = 14
"""Side in cells of the maps that masks are made from; masks have twice as many."""
INSIDE = 0.5
"""Probability from which on a pixel is part of the object."""
CONSTANT_SIDE = 64
"""Side in pixels of the constant label's image."""


class _FloatMaskPredictor(MaskRCNNPredictor):  # type: ignore[misc]  # torchvision is untyped
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


def _annotations(value: Value, size: NDArray[np.int32]) -> list[Annotation]:
    to: Size = (int(size[0]), int(size[1]))
    masks: list[Any] = resize_masks(value["masks"], image_size(value), FULL_IMAGE, to).tolist()
    return [{"segmentation": as_coco(mask, to), "area": mask_area(mask, to)} for mask in masks]


class TaskModel(RCNNTask):
    """Learn scored boxes with classes and masks."""

    @property
    def shapes(self) -> Shapes:
        return Shapes("segm", _annotations, overlaps)

    def head(self, info: FeatureInfo) -> nn.Module:
        """Return the head of detection, and beside its box head four convolutions and a deconvolution for masks."""
        classes, width = len(self.space.classes), info.pyramid_channels
        return DetectionHead(
            info,
            classes,
            mask_roi_pool=WholeImageAlign(info.image_size, POOL_SIZE),
            mask_head=MaskRCNNHeads(width, [width] * 4, dilation=1, norm_layer=nn.BatchNorm2d),
            mask_predictor=_FloatMaskPredictor(width, width, classes + 1),
        )

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        """Return what detection's target is, with the masks (N, S, S) uint8 of each image."""
        target = super().collate(values, valid)
        for image, value in zip(target["images"], values, strict=True):
            size = image_size(value)
            masks = [decode_mask(mask, size) for mask in value["masks"]]
            stacked = np.stack(masks) if masks else np.zeros((0, size[1], size[0]), bool)
            image["masks"] = torch.from_numpy(stacked.view(np.uint8))
        return target

    def predict(self, output: Pending, valid: ValidSizes = None) -> Prediction:
        """Return what detection does, and of each box the probabilities (28, 28) that its parts are the object's."""
        prediction = super().predict(output, valid)
        images = [{**found, "masks": found["masks"].squeeze(1)} for found in prediction["images"]]
        return {**prediction, "images": images}

    def value(self, prediction: Prediction, index: int, placement: Placement) -> Value:
        """Return the label of an image; an object of which no pixel is probable enough is left out."""
        value = super().value(prediction, index, placement)
        pasted = self.paste(prediction["images"][index]["masks"], value["boxes"], placement)
        kept = np.array([mask is not None for mask in pasted], dtype=bool)
        masks = rle_array(mask for mask in pasted if mask is not None)
        return {**{name: array if name == "size" else array[kept] for name, array in value.items()}, "masks": masks}

    def paste(self, masks: NDArray[Any], boxes: NDArray[np.float32], placement: Placement) -> Sequence[bytes | None]:
        """Return the run lengths in the image of the predicted masks of N boxes; None for a mask without a pixel.

        Boxes (N, 4) are in pixels of the image.
        """
        return [paste_mask(cells, box, placement.size) for cells, box in zip(masks, boxes.tolist(), strict=True)]

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the mean box of the most frequent class, filled, in an image of CONSTANT_SIDE x CONSTANT_SIDE."""
        relative = super().constant_label(values)
        boxes = relative["boxes"] * np.float32(CONSTANT_SIDE)
        size = (CONSTANT_SIDE, CONSTANT_SIDE)
        masks = rle_array(_filled(box, size) for box in boxes.tolist())
        return {**relative, "boxes": boxes, "size": np.array(size, dtype=np.int32), "masks": masks}


def paste_mask(cells: NDArray[np.float32], box: Sequence[float], size: Size) -> bytes | None:
    """Return the run lengths, in an image of `size`, of a mask given as probabilities (h, w) of the cells of a `box`.

    A pixel is inside where the probability, between the centers of cells bilinearly, is INSIDE or more. None if no
    pixel is.
    """
    x0, y0, x1, y1 = box
    left, right = math.floor(x0), min(math.ceil(x1), size[0])
    top, bottom = math.floor(y0), min(math.ceil(y1), size[1])
    if left >= right or top >= bottom or x0 >= x1 or y0 >= y1:
        return None
    rows = linear_weights((top - y0) / (y1 - y0), (bottom - y0) / (y1 - y0), cells.shape[0], bottom - top)
    columns = linear_weights((left - x0) / (x1 - x0), (right - x0) / (x1 - x0), cells.shape[1], right - left)
    mask = rows @ cells.astype(np.float64) @ columns.T >= INSIDE
    return encode_mask(mask, (left, top), size) if mask.any() else None


def _filled(box: Sequence[float], size: Size) -> bytes:
    """Return the run lengths of all pixels that a box touches."""
    x0, y0, x1, y1 = box
    left, top = min(math.floor(x0), size[0] - 1), min(math.floor(y0), size[1] - 1)
    shape = max(math.ceil(y1) - top, 1), max(math.ceil(x1) - left, 1)
    return encode_mask(np.ones(shape, dtype=bool), (left, top), size)
