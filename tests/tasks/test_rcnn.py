"""The head that finds boxes, which detection, masks and keypoints share: its anchors, its levels, its proposals."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from tasks.rcnn import DetectionHead, anchor_sizes, default_proposals
from tasks.task import PYRAMID_STRIDES, FeatureInfo, Features


def head_for(image_size: int, proposals: int | None = None) -> DetectionHead:
    return DetectionHead(FeatureInfo(8, 8, image_size, proposals), classes=2).eval()


def anchors_of(head: DetectionHead, dtype: torch.dtype) -> torch.Tensor:
    levels = [torch.zeros(1, 8, *[max(1, head.size // stride)] * 2, dtype=dtype) for stride in PYRAMID_STRIDES]
    pending = head(Features(torch.zeros(1, 8), levels))
    [anchors] = head.rpn.anchor_generator(ImageList(pending.blank, [(head.size, head.size)]), levels)
    return anchors


@pytest.mark.parametrize("size", [64, 640, 1024])
def test_detection_head_has_exact_anchors_whatever_the_precision_of_the_maps(size: int) -> None:
    head = head_for(size)
    anchors = anchors_of(head, torch.bfloat16)
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, anchors_of(head, torch.float32))
    finest = anchors[: 3 * (size // 8) ** 2].view(size // 8, size // 8, 3, 4)
    centers = (finest[..., :2] + finest[..., 2:]).mean(dim=2) / 2
    step = torch.arange(size // 8) * 8.0
    assert torch.equal(centers, torch.stack([step.expand(size // 8, -1), step[:, None].expand(-1, size // 8)], dim=2))


@pytest.mark.parametrize("size", [96, 224, 416])
def test_detection_head_has_anchors_as_far_apart_as_the_cells_of_every_level(size: int) -> None:
    """Also where maps are rounded up, as P6 of 224 pixels, whose 4 x 4 cells are of 64 pixels."""
    sides = [-(-size // stride) for stride in PYRAMID_STRIDES]
    levels = [torch.zeros(1, 8, side, side) for side in sides]
    blank = ImageList(torch.zeros(2, 0, size, size), [(size, size)] * 2)
    anchors, other = head_for(size).rpn.anchor_generator(blank, levels)
    assert torch.equal(anchors, other)
    by_level = anchors.split([3 * side**2 for side in sides])
    for side, stride, boxes in zip(sides, PYRAMID_STRIDES, by_level, strict=True):
        centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).view(side, side, 3, 2)[:, :, 0]
        assert centers[0, :, 0].tolist() == [stride * column for column in range(side)]
        assert centers[:, 0, 1].tolist() == [stride * row for row in range(side)]


@pytest.mark.parametrize(("size", "largest"), [(128, 256), (400, 256), (800, 512), (1600, 1024)])
def test_anchor_sizes_follow_the_image_size(size: int, largest: float) -> None:
    sizes = anchor_sizes(size)
    assert sizes == tuple(largest / 16 * 2**level for level in range(5))
    heights = {round(float(box[3] - box[1])) for box in anchors_of(head_for(size), torch.float32)[-3:]}
    assert any(abs(height - largest) <= 1 for height in heights), "the square one of P7"


def test_detection_head_pools_boxes_from_the_levels_of_fpn_at_any_image_size() -> None:
    boxes = torch.tensor([[0.0, 0, side, side] for side in (20, 223, 225, 447, 449)])
    for image_size in (64, 1024):
        levels = {f"p{level}": torch.zeros(1, 8, *[image_size // 2**level] * 2) for level in (3, 4, 5)}
        pool = head_for(image_size).boxes.box_roi_pool
        pool(levels, [boxes], [(image_size, image_size)])
        assert pool.map_levels([boxes]).tolist() == [0, 0, 1, 1, 2]


def test_detection_head_proposes_as_many_regions_as_the_image_size_asks_for() -> None:
    assert [default_proposals(size) for size in (64, 224, 512, 1024)] == [32, 98, 512, 1000]
    head = head_for(512)
    assert (head.rpn.post_nms_top_n(), head.boxes.fg_bg_sampler.batch_size_per_image) == (512, 512)
    assert head_for(1024).boxes.fg_bg_sampler.batch_size_per_image == 512
    assert head_for(512, proposals=16).rpn.post_nms_top_n() == 16


def test_detection_head_ignores_anchors_in_the_padding() -> None:
    head, size = head_for(128), (128, 64)
    anchors = anchors_of(head, torch.float32)
    truth = {"boxes": torch.tensor([[32.0, 16.0, 64.0, 48.0]]), "valid": torch.tensor(size)}
    [labels], _ = head.rpn.assign_targets_to_anchors([anchors], [truth])
    [everywhere], _ = head.rpn.assign_targets_to_anchors([anchors], [{**truth, "valid": torch.tensor([128, 128])}])
    below = (anchors[:, 1] + anchors[:, 3]) / 2 >= 64
    assert (everywhere[below] == 0).any()
    assert (labels[below & (everywhere == 0)] == -1).all()
    torch.testing.assert_close(labels[~below], everywhere[~below])
