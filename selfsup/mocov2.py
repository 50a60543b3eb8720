"""MoCo-v2: a view is told from a queue of other images' keys, which a slowly moving copy of the network has made
(He et al., CVPR 2020; Chen et al., 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from selfsup.components.config import MethodConfig
from selfsup.components.heads import MomentumEncoder, projector
from selfsup.components.losses import info_nce
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat

POLICY = Policy(area=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4)
"""As HPT has it: the hue changes four times as far as in MoCo-v2's own code."""
LARGEST = 65_536
GROUP = 16
"""Images whose keys are normalised together, at least."""


class Config(MethodConfig):
    """MoCo-v2, as HPT uses it."""

    method: Literal["mocov2"] = "mocov2"
    dim: int = Field(default=128, ge=2)
    """Of the embedding."""
    temperature: float = Field(default=0.2, gt=0)
    """Of the softmax over cosines."""
    key_momentum: float = Field(default=0.999, ge=0, le=1)
    """Of the copy that makes the keys."""
    queue: int | None = Field(default=None, ge=1)
    """Keys that are remembered; null for 65,536, or as many as there are images in whole batches, if they are fewer."""

    def build(self, backbone: Encoder, setting: StageSetting) -> Method:
        """The method, its head fresh and its queue of random directions."""
        return MoCo(self, backbone, setting)


class MoCo(Method):
    """A query network that learns, a key network that follows it, and the queue."""

    family: ClassVar[Family] = "contrastive"
    queue: Tensor
    owners: Tensor
    place: Tensor

    def __init__(self, config: Config, backbone: Encoder, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.size = config, setting.size
        self.head = projector([backbone.width, backbone.width, config.dim])
        self.keys = MomentumEncoder(nn.Sequential(backbone, self.head))
        length = config.queue or min(LARGEST, max(setting.images // setting.batch, 1) * setting.batch)
        self.register_buffer("queue", F.normalize(torch.randn(length, config.dim), dim=1))
        self.register_buffer("owners", torch.full((length,), -1))
        self.register_buffer("place", torch.tensor(0))

    def kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, POLICY)] * 2

    def losses(self, views: Views) -> dict[str, Tensor]:
        self.keys.catch_up(nn.Sequential(self.backbone, self.head), self.config.key_momentum, views.step)
        query, *labelled = forward_concat(
            self.head, forward_concat(self.backbone, [views.unlabelled[0], views.labelled])
        )
        key = F.normalize(self._keys(views.unlabelled[1]).float(), dim=1)
        own = views.index[:, None] == self.owners[None, :]
        loss = info_nce(query, key, self.queue.clone(), self.config.temperature, own)
        self._remember(key, views.index)
        return {"mocov2": loss} | (self.supervised(labelled[0], views) if labelled else {})

    def _keys(self, images: Tensor) -> Tensor:
        """Keys in a random order by two groups: batch statistics that a query shared with its key would give it away
        (the paper shuffles images among GPUs for that).
        """
        order = torch.randperm(len(images), device=images.device)
        groups = order.chunk(2 if len(images) >= 2 * GROUP else 1)
        shuffled = torch.cat([self.keys(images[group]) for group in groups])
        return shuffled[order.argsort()]

    @torch.no_grad()
    def _remember(self, keys: Tensor, index: Tensor) -> None:
        """The oldest keys make room for these."""
        keys, index = keys[-len(self.queue) :], index[-len(self.queue) :]
        places = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys
        self.owners[places] = index
        self.place.copy_((self.place + len(keys)) % len(self.queue))
