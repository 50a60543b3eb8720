"""MoCo-v2: tell a query's key from a queue of other images' keys, which a momentum encoder computed (He et al., CVPR
2020; Chen et al., 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbone import Backbone
from pipeline.recipe.base import Optimizer
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.heads import MomentumEncoder, projector
from selfsup.components.key_queue import KeyQueue, shuffled_keys
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat

POLICY = Policy(area=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4)
"""HPT's: the hue changes four times as far as in MoCo-v2's own code."""


class Config(MethodConfig):
    """MoCo-v2, as HPT uses it; the schedule is that of both papers."""

    method: Literal["mocov2"] = "mocov2"
    optimizer: Optimizer = "sgd"
    lr: float = Field(default_factory=ScaledRate(0.03), gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    decay: Literal["matrices", "all"] = "all"
    warmup: float = Field(default=0, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    dim: int = Field(default=128, ge=2)
    """Width of the embedding."""
    temperature: float = Field(default=0.2, gt=0)
    """Temperature of the softmax over cosines."""
    key_momentum: float = Field(default=0.999, ge=0, le=1)
    """Momentum of the key encoder."""
    queue: int | None = Field(default=None, ge=1)
    """Keys in the queue; null for 65,536, or for as many images as whole batches hold, if they are fewer."""

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return MoCo(self, backbone, setting)


class MoCo(Method):
    """A query encoder f_q, a key encoder f_k that is its momentum copy, and a queue of keys."""

    family: ClassVar[Family] = "contrastive"

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.size = config, setting.size
        self.head = projector([backbone.width, backbone.width, config.dim])
        self.key_encoder = MomentumEncoder(nn.Sequential(backbone, self.head))
        self.queue = KeyQueue(config.queue, config.dim, setting)

    def view_kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, POLICY)] * 2

    def losses(self, views: Views) -> dict[str, Tensor]:
        query_encoder = nn.Sequential(self.backbone, self.head)
        self.key_encoder.update_from(query_encoder, self.config.key_momentum, views.step)  # eq. 2
        h = forward_concat(self.backbone, [views.unlabelled[0], views.labelled])
        z = forward_concat(self.head, h)
        keys, own = shuffled_keys(self.key_encoder, views.unlabelled[1], self.collectives)
        k = F.normalize(keys, dim=1)
        losses = {"mocov2": self.queue.contrast(z[0], k[own], views.index, self.config.temperature)}
        self.queue.enqueue(k, self.collectives.all_gather(views.index).rows)
        return losses | self.labelled_losses(z[-1], views)
