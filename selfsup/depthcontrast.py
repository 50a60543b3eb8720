"""DepthContrast: tell an image from others by its colors and by its depth, within each format and across both (Zhang et
al., ICCV 2021). Depth is what a teacher of the recipe sees in each view.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbone import Backbone, register_statistics
from pipeline.recipe.base import Name, Optimizer
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.heads import MomentumEncoder, projector
from selfsup.components.key_queue import KeyQueue, shuffled_keys
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat

COLORS = Policy(area=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
"""MoCo-v2's views, for the encoder of images."""
CROPS = Policy(area=(0.2, 1.0), jitter=0, grayscale=0, blur=0)
"""What the teacher sees, and the encoder of depth its answer to."""
PART = 0.5
"""What each of the four losses counts, as in the authors' configurations."""
CLIPPED = 2.5
"""Standard deviations of an image's depth that are black and white."""


class Config(MethodConfig):
    """DepthContrast; the schedule is MoCo-v2's."""

    method: Literal["depthcontrast"] = "depthcontrast"
    taught_task: ClassVar[str | None] = "depth"
    optimizer: Optimizer = "sgd"
    lr: float = Field(default_factory=ScaledRate(0.03), gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    decay: Literal["matrices", "all"] = "all"
    warmup: float = Field(default=0, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    teacher: Name
    """The teacher of depth in the recipe."""
    dim: int = Field(default=128, ge=2)
    """Width of the embedding."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature of the softmax over cosines."""
    key_momentum: float = Field(default=0.999, ge=0, le=1)
    """Momentum of the key encoders."""
    queue: int | None = Field(default=None, ge=1)
    """Keys in the queue of each format; null for 65,536, or for as many images as whole batches hold, if fewer."""

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return DepthContrast(self, backbone, setting)


class Format(nn.Module):
    """A format beside its backbone: a head of two layers, the momentum copy of both, and a queue of keys."""

    def __init__(self, backbone: Backbone, config: Config, setting: StageSetting) -> None:
        super().__init__()
        self.head = projector([backbone.width, backbone.width, config.dim])
        self.key_encoder = MomentumEncoder(nn.Sequential(backbone, self.head))
        self.queue = KeyQueue(config.queue, config.dim, setting)


class DepthContrast(Method):
    """Two encoders of one architecture, of images and of depth, which both begin as the stage's initial backbone."""

    family: ClassVar[Family] = "contrastive"

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.size, self.teacher = config, setting.size, setting.teacher
        self.depth_backbone = copy.deepcopy(backbone)
        register_statistics(self.depth_backbone, ((0.5,) * 3, (0.5 / CLIPPED,) * 3))
        self.image, self.depth = (Format(each, config, setting) for each in (backbone, self.depth_backbone))

    def view_kinds(self) -> Sequence[ViewKind]:
        colored, plain = ViewKind(self.size, COLORS), ViewKind(self.size, CROPS, is_plain=True)
        return [colored, colored, plain, plain]

    def other_backbones(self) -> Mapping[str, Backbone]:
        return {"depth": self.depth_backbone}

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Return half of InfoNCE of the queries of each format with the keys of each: two losses within, two across."""
        for backbone, of_format in ((self.backbone, self.image), (self.depth_backbone, self.depth)):
            encoder = nn.Sequential(backbone, of_format.head)
            of_format.key_encoder.update_from(encoder, self.config.key_momentum, views.step)
        query, key, *crops = views.unlabelled
        depth_query, depth_key = map(self._depth, crops)
        image, *labelled = forward_concat(self.image.head, forward_concat(self.backbone, [query, views.labelled]))
        depth = self.depth.head(self.depth_backbone(depth_query))
        index = self.collectives.all_gather(views.index).rows
        losses = {}
        for name, of_format, shown in (("image", self.image, key), ("depth", self.depth, depth_key)):
            gathered, own = shuffled_keys(of_format.key_encoder, shown, self.collectives)
            keys = F.normalize(gathered, dim=1)
            for other, queries in (("image", image), ("depth", depth)):
                contrast = of_format.queue.contrast(queries, keys[own], views.index, self.config.temperature)
                losses[f"{other} to {name}"] = PART * contrast
            of_format.queue.enqueue(keys, index)
        return losses | self.labelled_losses(labelled[0] if labelled else image, views)

    def _depth(self, images: Tensor) -> Tensor:
        """Return the teacher's depth of images (B, 3, S, S) as gray images in [0, 1] of the same shape.

        The teacher's raw output, logarithms of metres or relative inverse depth, is standardized in each image: what
        scale and shift it has says nothing of the scene.
        """
        assert self.teacher is not None
        maps: Tensor = self.teacher.output(images).float()
        maps = F.interpolate(maps, images.shape[-2:], mode="bilinear")
        deviations = (maps - maps.mean(dim=(2, 3), keepdim=True)) / (maps.std(dim=(2, 3), keepdim=True) + 1e-6)
        return (deviations / (2 * CLIPPED) + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)
