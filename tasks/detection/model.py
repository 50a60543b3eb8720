"""Detection: Faster R-CNN (Ren et al., NIPS 2015) on P3 to P7; COCO AP of boxes."""

from __future__ import annotations

from tasks.rcnn import RCNNTask


class TaskModel(RCNNTask):
    """Learn scored boxes."""
