"""Keypoints: Keypoint R-CNN (He et al., ICCV 2017, section 5) on P3 to P7, from torchvision's parts; COCO AP of OKS.

Detection's proposals and box head, and for each detected box a heat map of 56 x 56 cells for each point. Unlike in the
paper, a point is not the best cell but the mean of the heat map near it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads

from pipeline.data.augment import Placement, ValidSizes
from pipeline.errors import ConfigError
from pipeline.stores.labels import Value
from pipeline.stores.skeleton import BOX_SHARE, UNKNOWN, VISIBLE, box_areas
from tasks.average_precision import Annotation, Shapes, box_annotations
from tasks.keypoints.oks import match_radii, sigmas, similarities
from tasks.rcnn import DetectionHead, RCNNTask, WholeImageAlign
from tasks.task import FeatureInfo, Prediction, Target

POOL_SIZE = 14
"""Side in cells of the maps that heat maps are made from; heat maps have four times as many."""
CONVOLUTIONS = 8
"""Before the deconvolution, each twice as wide as the pyramid."""


class _FloatKeypointPredictor(KeypointRCNNPredictor):  # type: ignore[misc]  # torchvision is untyped
    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = super().forward(x)
        return maps.float().contiguous()  # torchvision's loss takes a view that maps in `channels_last` don't have


class _KeypointRoIHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's heads in training; detections' points are read from all heat maps at once, on the device.

    torchvision reads them box by box, and gives a logit as a point's score.
    """

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if self.training:
            found: tuple[list[dict[str, Tensor]], dict[str, Tensor]]
            found = super().forward(features, proposals, image_shapes, targets)
            return found
        pooled = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        boxes, scores, labels = self.postprocess_detections(*self.box_predictor(pooled), proposals, image_shapes)
        maps = self.keypoint_predictor(self.keypoint_head(self.keypoint_roi_pool(features, boxes, image_shapes)))
        detections = []
        for image, corners in enumerate(boxes):
            own = maps if len(boxes) == 1 else maps[: len(corners)]  # a graph for ONNX has one image
            maps = maps[len(corners) :]
            points, point_scores = read_heatmaps(own, corners)
            about = {"boxes": corners, "scores": scores[image], "labels": labels[image]}
            detections.append({**about, "keypoints": points, "keypoint_scores": point_scores})
        return detections, {}


def read_heatmaps(logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points (N, K, 2), in pixels, and their scores (N, K) of heat maps (N, K, S, S) of boxes (N, 4).

    A score is the probability, by the heat map, that the point lies where its similarity to the best cell is 0.5 or
    more, if the object covers BOX_SHARE of the box; the point is the mean of that part of the heat map.
    """
    side = logits.shape[-1]
    probabilities = logits.flatten(2).softmax(dim=2)
    best = probabilities.argmax(dim=2)
    centers = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5) / side
    extent = (boxes[:, 2:] - boxes[:, :2])[:, None]
    across, down = (
        ((centers - centers[at][..., None]) * extent[..., axis, None]) ** 2
        for axis, at in enumerate((best % side, best // side))
    )
    radii = torch.tensor(match_radii(logits.shape[1]), device=boxes.device, dtype=boxes.dtype)
    reach = radii**2 * BOX_SHARE * extent.prod(dim=2)
    near = probabilities.unflatten(2, (side, side)) * (
        down[..., :, None] + across[..., None, :] <= reach[..., None, None]
    )
    scores = near.sum(dim=(2, 3))
    means = torch.stack([near.sum(dim=2) @ centers, near.sum(dim=3) @ centers], dim=2) / scores[..., None]
    return boxes[:, None, :2] + means * extent, scores.clamp(max=1)


class _KeypointHead(DetectionHead):
    roi_heads = _KeypointRoIHeads


class TaskModel(RCNNTask):
    """Learn scored boxes with classes and keypoints."""

    @property
    def shapes(self) -> Shapes:
        return Shapes("keypoints", _annotations, similarities, tuple(sigmas(len(self.space.skeleton.points))))

    def head(self, info: FeatureInfo) -> nn.Module:
        """Return the head of detection, and beside its box head eight convolutions and a deconvolution for heat maps.

        Raises ConfigError if the label space names no keypoints.
        """
        width, count = 2 * info.pyramid_channels, len(self.space.skeleton.points)
        if not count:
            raise ConfigError("the labels name no keypoints: a teacher of keypoints needs a set that does, as COCO's")
        return _KeypointHead(
            info,
            len(self.space.classes),
            keypoint_roi_pool=WholeImageAlign(info.image_size, POOL_SIZE),
            keypoint_head=KeypointRCNNHeads(info.pyramid_channels, [width] * CONVOLUTIONS),
            keypoint_predictor=_FloatKeypointPredictor(width, count),
        )

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        """Return what detection's target is, with the keypoints (N, K, 3) of each image: x, y and visibility."""
        target = super().collate(values, valid)
        for image, value in zip(target["images"], values, strict=True):
            image["keypoints"] = torch.from_numpy(_with_visibility(value["keypoints"], value["visibility"]))
        return target

    def value(self, prediction: Prediction, index: int, placement: Placement) -> Value:
        value, found = super().value(prediction, index, placement), prediction["images"][index]
        scale = np.array(placement.size, np.float32) / np.array(placement.valid, np.float32)
        scores = found["keypoint_scores"]
        return {
            **value,
            "keypoints": np.clip(found["keypoints"] * scale, 0, np.array(placement.size, np.float32)),
            "visibility": np.full(scores.shape, VISIBLE, dtype=np.uint8),
            "keypoint_scores": scores,
            "areas": box_areas(value["boxes"]),
        }

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the mean box of the most frequent class, with each point at its mean place in the boxes of all."""
        places, known = [], []

        def noted() -> Iterator[Value]:
            for value in values:
                boxes = value["boxes"]
                sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
                places.append((value["keypoints"] - boxes[:, None, :2]) / sides[:, None])
                known.append(value["visibility"] > UNKNOWN)
                yield value

        label = super().constant_label(noted())
        count, boxes = len(self.space.skeleton.points), label["boxes"]
        seen = np.concatenate([np.zeros((0, count), dtype=bool), *known])
        relative = np.concatenate([np.zeros((0, count, 2), dtype=np.float32), *places])
        total = seen.sum(axis=0)
        mean = np.where(seen[..., None], relative, 0).sum(axis=0) / np.maximum(total, 1)[:, None]
        points = np.clip(boxes[:, None, :2] + mean * (boxes[:, 2:] - boxes[:, :2])[:, None], 0, label["size"])
        has = np.tile(total > 0, (len(boxes), 1))
        return {
            **label,
            "keypoints": np.where(has[..., None], points, 0).astype(np.float32),
            "visibility": np.where(has, VISIBLE, UNKNOWN).astype(np.uint8),
            "keypoint_scores": has.astype(np.float32),
            "areas": box_areas(boxes),
        }


def _annotations(value: Value, size: NDArray[np.int32]) -> list[Annotation]:
    """Return boxes, areas and keypoints as COCO's JSON has them, in an image of `size`."""
    scale = size / value["size"]
    points = _with_visibility(value["keypoints"].astype(np.float64) * scale, value["visibility"])
    columns = points, value["areas"].astype(np.float64) * np.prod(scale), box_annotations(value, size)
    return [
        {**box, "area": float(area), "keypoints": each.ravel().tolist(), "num_keypoints": int((each[:, 2] > 0).sum())}
        for each, area, box in zip(*columns, strict=True)
    ]


def _with_visibility(points: NDArray[Any], visibility: NDArray[np.uint8]) -> NDArray[Any]:
    """Return points (N, K, 3) with their visibility as a third number."""
    return np.concatenate([points, visibility[..., None].astype(points.dtype)], axis=2)
