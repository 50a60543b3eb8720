"""Detection: Faster R-CNN on P3 to P7, from torchvision's parts.

As in MuST: a region proposal network with two hidden convolutions, and a box head of four convolutions and one
fully connected layer. Everything after the convolutions is computed in float32 whatever the precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from pipeline.stores.labels import Value
from tasks.detection.metric import AveragePrecision
from tasks.task import FeatureInfo, Features, Prediction, Target, Task

SCORE_FLOOR = 0.01
MOST_BOXES = 100
"""Kept per image: raw enough that any threshold can be applied when the labels are read."""
POOLED = 7
SAMPLES = 0
"""RoIAlign takes one sample per map cell that a bin covers, however large the box."""
LEVELS = ("p3", "p4", "p5", "p6", "p7")


class _FloatRPNHead(RPNHead):  # type: ignore[misc]  # torchvision is untyped
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, deltas = super().forward(x)
        return [score.float() for score in scores], [delta.float() for delta in deltas]


class _FloatPredictor(FastRCNNPredictor):  # type: ignore[misc]
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


@dataclasses.dataclass
class Pending:
    """Detection's raw output: proposals depend on the targets in training, so the work is finished in the head."""

    head: DetectionHead
    levels: dict[str, Tensor]
    images: ImageList


class DetectionHead(nn.Module):
    """RPN and box head; anchors of twice each level's stride, three aspect ratios, for inputs of a few hundred px."""

    def __init__(self, features: FeatureInfo, classes: int) -> None:
        super().__init__()
        width, count = features.pyramid, features.proposals
        anchors = AnchorGenerator(tuple((2 * stride,) for stride in features.strides), ((0.5, 1.0, 2.0),) * len(LEVELS))
        self.rpn = RegionProposalNetwork(
            anchors,
            _FloatRPNHead(width, 3, conv_depth=2),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 4 * count, "testing": 4 * count},
            post_nms_top_n={"training": 2 * count, "testing": count},
            nms_thresh=0.7,
        )
        pool = MultiScaleRoIAlign(
            list(LEVELS[:3]), POOLED, SAMPLES, canonical_scale=features.image_size // 2, canonical_level=4
        )
        self.boxes = RoIHeads(
            pool,
            FastRCNNConvFCHead((width, POOLED, POOLED), [width] * 4, [4 * width], norm_layer=nn.BatchNorm2d),
            _FloatPredictor(4 * width, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=count,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=SCORE_FLOOR,
            nms_thresh=0.5,
            detections_per_img=MOST_BOXES,
        )
        self.size = features.image_size

    def forward(self, features: Features) -> Pending:
        count = len(features.top)
        blank = features.top.new_empty(count, 3, self.size, self.size, device="meta")
        levels = dict(zip(LEVELS, features.pyramid, strict=True))
        return Pending(self, levels, ImageList(blank, [(self.size, self.size)] * count))

    def losses(self, pending: Pending, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """RPN objectness and box loss, class and box loss of the box head."""
        proposals, rpn = self.rpn(pending.images, pending.levels, targets)
        _, boxes = self.boxes(self._float(pending), proposals, pending.images.image_sizes, targets)
        return {**rpn, **boxes}

    def detect(self, pending: Pending) -> list[dict[str, Tensor]]:
        """Per image: `boxes` (N, 4) in input pixels, `scores` (N,), `labels` (N,) from 1."""
        proposals, _ = self.rpn(pending.images, pending.levels)
        found, _ = self.boxes(self._float(pending), proposals, pending.images.image_sizes)
        return list(found)

    @staticmethod
    def _float(pending: Pending) -> dict[str, Tensor]:
        return {name: level.float() for name, level in pending.levels.items()}  # RoIAlign has no bfloat16


class TaskModel(Task):
    """Where things are: scored boxes of the classes."""

    better = {"ap": "higher", "ap50": "higher"}  # noqa: RUF012 - a constant

    def head(self, features: FeatureInfo) -> nn.Module:
        return DetectionHead(features, len(self.space.classes))

    def collate(self, values: Sequence[Value]) -> Target:
        """Boxes in input pixels; an image without boxes is a valid example: all background."""
        return {
            "images": [
                {
                    "boxes": torch.from_numpy(value["boxes"]),
                    "labels": torch.from_numpy(value["classes"].astype(np.int64)) + 1,
                }
                for value in values
            ]
        }

    def loss(self, output: Pending, target: Target) -> Tensor:
        losses = output.head.losses(output, target["images"])
        return torch.stack(list(losses.values())).sum()

    def amount(self, target: Target) -> float:
        """Images. The loss is a mean over some hundreds of anchors and proposals drawn in each."""
        return len(target["images"])

    def predict(self, output: Pending) -> Prediction:
        return {"images": output.head.detect(output), "input": output.head.size}

    def value(self, prediction: Prediction, index: int, size: tuple[int, int]) -> Value:
        found: dict[str, Any] = prediction["images"][index]
        scale = np.array([size[0], size[1]] * 2, dtype=np.float32) / np.float32(prediction["input"])
        return {
            "boxes": found["boxes"] * scale,
            "scores": found["scores"],
            "classes": found["labels"].astype(np.int32) - 1,
            "size": np.array(size, dtype=np.int32),
        }

    def metrics(self) -> AveragePrecision:
        return AveragePrecision(len(self.space.classes))

    def constant_label(self, values: Iterable[Value]) -> Value:
        """The mean box of the most frequent class, relative to the image: `size` (1, 1)."""
        boxes, classes = [], []
        for value in values:
            boxes.append(value["boxes"] / np.tile(value["size"], 2).astype(np.float32))
            classes.append(value["classes"])
        names = np.concatenate(classes) if classes else np.zeros(0, dtype=np.int32)
        if not names.size:
            empty = np.zeros(0, dtype=np.float32)
            return {
                "boxes": np.zeros((0, 4), np.float32),
                "scores": empty,
                "classes": names,
                "size": np.ones(2, np.int32),
            }
        top = int(np.bincount(names).argmax())
        mean = np.concatenate(boxes)[names == top].mean(axis=0, keepdims=True)
        return {
            "boxes": mean.astype(np.float32),
            "scores": np.ones(1, dtype=np.float32),
            "classes": np.full(1, top, dtype=np.int32),
            "size": np.ones(2, dtype=np.int32),
        }
