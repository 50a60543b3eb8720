"""MoCo-v2: tell a query's key from a queue of other images' keys, which a momentum encoder computed (He et al., CVPR
2020; Chen et al., 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbone import Backbone
from pipeline.recipe.base import Optimizer
from pipeline.training.collectives import Gathered
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.heads import MomentumEncoder, projector
from selfsup.components.losses import info_nce
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat

POLICY = Policy(area=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4)
"""HPT's: the hue changes four times as far as in MoCo-v2's own code."""
MAX_QUEUE = 65_536
MIN_GROUP = 8
"""Fewest images of a process whose keys share batch statistics."""


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
    """A query encoder f_q, a key encoder f_k that is its momentum copy, and a queue of keys, at first random ones.

    `queue_images`: the position in the set of each key's image, -1 for random keys; `queue_ptr`: the oldest key.
    """

    family: ClassVar[Family] = "contrastive"
    queue: Tensor
    queue_images: Tensor
    queue_ptr: Tensor

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.size = config, setting.size
        self.head = projector([backbone.width, backbone.width, config.dim])
        self.key_encoder = MomentumEncoder(nn.Sequential(backbone, self.head))
        length = config.queue or min(MAX_QUEUE, max(setting.images // setting.batch, 1) * setting.batch)
        self.register_buffer("queue", F.normalize(torch.randn(length, config.dim), dim=1))
        self.register_buffer("queue_images", torch.full((length,), -1))
        self.register_buffer("queue_ptr", torch.tensor(0))

    def view_kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, POLICY)] * 2

    def losses(self, views: Views) -> dict[str, Tensor]:
        query_encoder = nn.Sequential(self.backbone, self.head)
        self.key_encoder.update_from(query_encoder, self.config.key_momentum, views.step)  # eq. 2
        h = forward_concat(self.backbone, [views.unlabelled[0], views.labelled])
        z = forward_concat(self.head, h)
        keys, own = self._keys(views.unlabelled[1])
        k = F.normalize(keys, dim=1)
        same_image = views.index[:, None] == self.queue_images[None, :]
        losses = {"mocov2": info_nce(z[0], k[own], self.queue.clone(), self.config.temperature, same_image)}
        self._enqueue(k, self.collectives.all_gather(views.index).rows)
        return losses | self.labelled_losses(z[-1], views)

    def _keys(self, images: Tensor) -> Gathered:
        """Return the keys (B, D) float32 of all processes, whose images are shuffled among them (section 3.3).

        Each computes them in two random groups, or in one if they had fewer than MIN_GROUP images. Normalised with its
        query's batch, a key could be recognised by the batch statistics that they share. The paper has no such groups,
        but a single process needs them, and so do SyncBatchNorms, which normalise a group in all processes together.
        """
        everyone, own = self.collectives.all_gather(images)
        order = self.collectives.broadcast(torch.randperm(len(everyone), device=images.device))
        shares = order.tensor_split(self.collectives.world_size)
        groups = shares[self.collectives.rank].chunk(2 if len(shares[-1]) >= 2 * MIN_GROUP else 1)
        shuffled = torch.cat([self.key_encoder(everyone[group]) for group in groups])
        return Gathered(self.collectives.all_gather(shuffled.float()).rows[order.argsort()], own)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, index: Tensor) -> None:
        """Replace the oldest keys by these."""
        keys, index = keys[-len(self.queue) :], index[-len(self.queue) :]
        positions = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[positions] = keys
        self.queue_images[positions] = index
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % len(self.queue))
