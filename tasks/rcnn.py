"""Faster R-CNN (Ren et al., NIPS 2015) on P3 to P7, from torchvision's parts: the base of all that finds objects.

As in MuST: a region proposal network with two hidden convolutions, and a box head of four convolutions and one
fully connected layer. Anchors, and all that follows the convolutions, are computed in float32 whatever the precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from pipeline.data.augment import Placement, ValidSizes
from pipeline.stores.labels import Value
from tasks.average_precision import BOXES, AveragePrecision, Shapes
from tasks.calibration import ScoredExamples
from tasks.instances import match_instances
from tasks.task import PYRAMID_STRIDES, FeatureInfo, Features, Prediction, Target, Task

MIN_SCORE = 0.01
MAX_BOXES = 100
"""Per image. Labels keep low scores, as thresholds are applied when labels are read."""
POOL_SIZE = 7
SAMPLING_RATIO = 0
"""RoIAlign takes a sample per map cell that a bin covers, however large the box."""
CANONICAL_SIZE = 224
"""Side in pixels from which on boxes are pooled from P4; from twice that on from P5, and below it from P3.

As in FPN (Lin et al., CVPR 2017, eq. 1). It does not follow the image size: a box covers as many cells in small images
as in large ones.
"""
LEVELS = ("p3", "p4", "p5", "p6", "p7")
MOST_PROPOSALS, MOST_SAMPLED = 1000, 512
"""Proposals per image, and those of them that the box head learns from, as in torchvision's detectors for large images.
"""


def anchor_sizes(image_size: int) -> tuple[float, ...]:
    """Return the side of the anchors of P3 to P7 for images of this side, pixels.

    RetinaNet's at its 800 pixels, 32 to 512 (Lin et al., ICCV 2017), and in proportion from 400 pixels on, 4 to 64 % of
    the side. In smaller images they are two cells of each level, 16 to 256 pixels.
    """
    return tuple(stride * max(2.0, image_size / 200) for stride in PYRAMID_STRIDES)


def default_proposals(image_size: int) -> int:
    """Return how many proposals suit images of this side: in proportion to their pixels, 512 at 512."""
    return max(32, min(MOST_PROPOSALS, image_size**2 // 512))


class _FloatAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is untyped
    """Anchors in float32, as far apart as the cells of their maps.

    torchvision's have the precision of the maps, and bfloat16 can't tell 1,000 from 1,003. It takes a side over its
    cells for the stride, which is too little where a map is rounded up: P7 of 224 pixels has 2 x 2 cells of 128.
    """

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in PYRAMID_STRIDES]
        levels = self.grid_anchors([[*level.shape[-2:]] for level in feature_maps], strides)
        return [torch.cat(levels)] * len(image_list.image_sizes)


class _ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """A region proposal network that learns nothing from anchors in the padding."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return torchvision's labels, 1 object, 0 background, -1 ignored, and boxes of the anchors of each image.

        Background anchors whose centers are outside an image's valid region are ignored.
        """
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, corners, target in zip(labels, anchors, targets, strict=True):
            centers = (corners[:, :2] + corners[:, 2:]) / 2
            label[(label == 0) & (centers >= target["valid"]).any(dim=1)] = -1
        return labels, boxes


class _FloatRPNHead(RPNHead):  # type: ignore[misc]  # torchvision is untyped
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, deltas = super().forward(x)
        return [score.float() for score in scores], [delta.float() for delta in deltas]


class WholeImageAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign on maps of whole images of `image_size` pixels, padding included.

    torchvision infers the maps' strides from the first images it sees: from valid regions that fill half of the image,
    it would take half of each stride.
    """

    def __init__(self, image_size: int, cells: int) -> None:
        """Pool boxes from P3 to P5 into `cells` x `cells`."""
        super().__init__(list(LEVELS[:3]), cells, SAMPLING_RATIO, canonical_scale=CANONICAL_SIZE, canonical_level=4)
        self.image_size = image_size

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        pooled: Tensor = super().forward(x, boxes, [(self.image_size, self.image_size)] * len(image_shapes))
        return pooled


class _FloatPredictor(FastRCNNPredictor):  # type: ignore[misc]
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


@dataclasses.dataclass
class Pending:
    """The raw output: the head and its inputs.

    Proposals depend on the targets in training, so `loss` and `predict` run the head.
    """

    head: DetectionHead
    levels: dict[str, Tensor]
    blank: Tensor
    """Images without values, for their shape."""


def _proposal_network(width: int, image_size: int, proposals: int) -> _ProposalNetwork:
    """Return an RPN on maps of `width` channels that gives so many proposals per image, twice as many in training."""
    sizes = tuple((size,) for size in anchor_sizes(image_size))
    candidates = min(4 * proposals, 2 * MOST_PROPOSALS)
    return _ProposalNetwork(
        _FloatAnchors(sizes, ((0.5, 1.0, 2.0),) * len(LEVELS)),
        _FloatRPNHead(width, 3, conv_depth=2),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": candidates, "testing": candidates},
        post_nms_top_n={"training": 2 * proposals, "testing": proposals},
        nms_thresh=0.7,
    )


def _box_parts(width: int, image_size: int, proposals: int, classes: int) -> dict[str, Any]:
    """Return the parts and settings of torchvision's `RoIHeads`: a box head of 4 convolutions and a linear layer, on
    regions of maps of `width` channels.
    """
    return {
        "box_roi_pool": WholeImageAlign(image_size, POOL_SIZE),
        "box_head": FastRCNNConvFCHead(
            (width, POOL_SIZE, POOL_SIZE), [width] * 4, [4 * width], norm_layer=nn.BatchNorm2d
        ),
        "box_predictor": _FloatPredictor(4 * width, classes + 1),
        "fg_iou_thresh": 0.5,
        "bg_iou_thresh": 0.5,
        "batch_size_per_image": min(proposals, MOST_SAMPLED),
        "positive_fraction": 0.25,
        "bbox_reg_weights": None,
        "score_thresh": MIN_SCORE,
        "nms_thresh": 0.5,
        "detections_per_img": MAX_BOXES,
    }


class DetectionHead(nn.Module):
    """RPN and box head. Anchors have three aspect ratios; their sizes and the proposals follow the image size.

    `more` are further parts of torchvision's `RoIHeads`, which detections and losses are of as well.
    """

    roi_heads: ClassVar[type[RoIHeads]] = RoIHeads

    def __init__(self, info: FeatureInfo, classes: int, **more: nn.Module) -> None:
        super().__init__()
        width, proposals = info.pyramid_channels, info.proposals or default_proposals(info.image_size)
        self.rpn = _proposal_network(width, info.image_size, proposals)
        self.boxes = self.roi_heads(**_box_parts(width, info.image_size, proposals, classes), **more)
        self.size = info.image_size

    def forward(self, features: Features) -> Pending:
        levels = dict(zip(LEVELS, features.pyramid, strict=True))
        finest = features.pyramid[0]
        blank = finest.new_empty(len(finest), 3, self.size, self.size, device="meta")
        return Pending(self, levels, blank)

    def run(
        self, pending: Pending, valid: ValidSizes, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return (detections, losses): the former in eval mode, the latter in training mode, which needs targets.

        `valid`: (width, height) of each image's valid region in input pixels, to which boxes are clipped.
        Detections: for each image `boxes` (N, 4) in input pixels, `scores` (N,) and `labels` (N,) from 1. Losses,
        scalars: objectness and box loss of the RPN (Faster R-CNN, eq. 1), class and box loss of the box head (Fast
        R-CNN, Girshick, ICCV 2015, eq. 1). With a mask head, detections have `masks` (N, 1, 28, 28), probabilities in
        their boxes, and there is the mask loss (Mask R-CNN, section 3): binary cross entropy of the mask of the true
        class. With a keypoint head, they have `keypoints` (N, K, 2) in input pixels and `keypoint_scores` (N, K), and
        there is the keypoint loss (section 5): cross entropy over the cells of a box, of points that are known.
        """
        whole = [(self.size, self.size)] * len(pending.blank)
        images = ImageList(pending.blank, [(height, width) for width, height in valid or whole])
        proposals, rpn = self.rpn(images, pending.levels, targets)
        levels = {name: level.float() for name, level in pending.levels.items()}  # RoIAlign has no bfloat16
        detections, boxes = self.boxes(levels, proposals, images.image_sizes, targets)
        return detections, {**rpn, **boxes}


class RCNNTask(Task):
    """Learn scored boxes with classes, and what a task adds about each; raw output: `Pending`."""

    reads = "pyramid"
    better = {"ap": "higher", "ap50": "higher"}  # noqa: RUF012 - a constant

    @property
    def shapes(self) -> Shapes:
        """The part of objects that tells whether one was found."""
        return BOXES

    def head(self, info: FeatureInfo) -> nn.Module:
        return DetectionHead(info, len(self.space.classes))

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        """Return boxes in input pixels and class ids from 1. An image without boxes is valid: all background.

        `valid` is kept as tensors and as numbers, which are read without waiting for a device.
        """
        valid = valid or [(int(value["size"][0]), int(value["size"][1])) for value in values]
        images = [
            {
                "boxes": torch.from_numpy(value["boxes"]),
                "labels": torch.from_numpy(value["classes"]).long() + 1,
                "valid": torch.tensor(size),
            }
            for value, size in zip(values, valid, strict=True)
        ]
        return {"images": images, "valid": valid}

    def loss(self, output: Pending, target: Target) -> Tensor:
        """Return the unweighted sum of the losses of `DetectionHead.run`."""
        _, losses = output.head.run(output, target["valid"], target["images"])
        return torch.stack(list(losses.values())).sum()

    def known(self, target: Target) -> Tensor:
        """Return true for each image: the loss is a mean over anchors and proposals that are drawn in each."""
        return torch.ones(len(target["images"]), dtype=torch.bool)

    def predict(self, output: Pending, valid: ValidSizes = None) -> Prediction:
        detections, _ = output.head.run(output, valid)
        return {"images": detections}

    def value(self, prediction: Prediction, index: int, placement: Placement) -> Value:
        detections = prediction["images"][index]
        scale = np.array(placement.size * 2, np.float32) / np.array(placement.valid * 2, np.float32)
        return {
            "boxes": detections["boxes"] * scale,
            "scores": detections["scores"],
            "classes": detections["labels"].astype(np.int32) - 1,
            "size": np.array(placement.size, dtype=np.int32),
        }

    def metrics(self) -> AveragePrecision:
        return AveragePrecision(len(self.space.classes), self.shapes)

    def scored_examples(self, predicted: Value, true: Value) -> ScoredExamples | None:
        """Return the objects: right are those that match a true one, as in AP at an IoU of 0.5."""
        if not len(predicted["boxes"]):
            return None
        right = match_instances(predicted, true, self.shapes.overlaps).astype(np.float64)
        return ScoredExamples(predicted["scores"].astype(np.float32), right, np.ones(len(right)))

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the mean box of the most frequent class, in an image of `size` (1, 1)."""
        boxes, classes = [], []
        for value in values:
            boxes.append(value["boxes"] / np.tile(value["size"], 2).astype(np.float32))
            classes.append(value["classes"])
        class_ids = np.concatenate([np.zeros(0, dtype=np.int32), *classes])
        top = int(np.bincount(class_ids, minlength=1).argmax())
        mean = np.concatenate([np.zeros((0, 4), dtype=np.float32), *boxes])[class_ids == top]
        if len(mean):
            mean = mean.mean(axis=0, keepdims=True)
        return {
            "boxes": mean.astype(np.float32),
            "scores": np.ones(len(mean), dtype=np.float32),
            "classes": np.full(len(mean), top, dtype=np.int32),
            "size": np.ones(2, dtype=np.int32),
        }
