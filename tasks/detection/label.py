"""Detection labels on disk and drawn: scored boxes with classes."""

from __future__ import annotations

from tasks.instances import InstanceLabel


class TaskLabel(InstanceLabel):
    """`boxes` (N, 4) float32, x0 y0 x1 y1 in pixels from the top left corner; `scores` (N,) float32 in [0, 1];
    `classes` (N,) int32, ids from 0; and `size` (2,) int32, (width, height) of the image that boxes are measured in.

    Stored without loss. Nothing can be unknown: N = 0 states that the image shows none of the classes. A threshold
    drops boxes that are less probable. A box's probability is the precision at an IoU of 0.5 of boxes with its score
    (Kueppers et al., CVPRW 2020).
    """

    task = "detection"
    noun = "box", "boxes"
    unit = "objects (boxes by their probability)"
