"""SwAV: predict, from each view, the cluster assignment ("code") of another view (Caron et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.models.backbone import Backbone
from pipeline.recipe.base import Optimizer
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.heads import Prototypes, projector
from selfsup.components.kmeans import default_cluster_count
from selfsup.components.losses import sinkhorn, swapped_prediction
from selfsup.components.method import Family, Method, StageSetting, ViewKind, Views, forward_concat
from selfsup.components.multicrop import SWAV_GLOBAL_VIEWS, swav_views

MAX_QUEUE = 3840


class Config(MethodConfig):
    """SwAV; the schedule is that of the authors' code for 200 epochs of batches of 256."""

    method: Literal["swav"] = "swav"
    optimizer: Optimizer = "lars"
    lr: float = Field(default_factory=ScaledRate(0.6), gt=0)
    weight_decay: float = Field(default=1e-6, ge=0)
    warmup: float = Field(default=0, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    local_views: int = Field(default=6, ge=0)
    """Local views of each image: smaller crops, about 3/7 as large on a side: 96 pixels for 224."""
    hidden: int = Field(default=2048, ge=2)
    """Width of the projector's hidden layer."""
    dim: int = Field(default=128, ge=2)
    """Width of the embedding."""
    prototypes: int | None = Field(default=None, ge=2)
    """Number of prototypes; null for 3,000, or a tenth of the images if that is less."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature of the softmax over scores."""
    epsilon: float = Field(default=0.05, gt=0)
    """Smoothness of the codes."""
    sinkhorn_steps: int = Field(default=3, ge=1)
    """Sinkhorn iterations, which make the codes use all prototypes alike."""
    freeze_prototypes: float = Field(default=0.005, ge=0, le=1)
    """Share of the steps at the start in which the prototypes are frozen."""
    queue: int | None = Field(default=None, ge=0)
    """Embeddings of earlier images that the codes are computed with; null for none, or, where a batch is smaller than
    the prototypes, for 3,840 or as many as there are images."""
    queue_from: float = Field(default=0.075, ge=0, le=1)
    """Share of the steps after which the queue is used."""

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return SwAV(self, backbone, setting)


class SwAV(Method):
    """An encoder with a projector of two layers, prototypes C, and a queue of embeddings for each global view."""

    family: ClassVar[Family] = "clustering"
    queue: Tensor

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.size = config, setting.size
        self.head = projector([backbone.width, config.hidden, config.dim], norm=True)
        count = config.prototypes or default_cluster_count(setting.images)
        self.prototypes = Prototypes(config.dim, count)
        needed = min(MAX_QUEUE, setting.images) if setting.batch < count else 0
        length = needed if config.queue is None else config.queue
        self.register_buffer("queue", torch.zeros(SWAV_GLOBAL_VIEWS, length, config.dim))

    def view_kinds(self) -> Sequence[ViewKind]:
        return swav_views(self.size, self.config.local_views)

    def losses(self, views: Views) -> dict[str, Tensor]:
        embeddings = forward_concat(self.head, forward_concat(self.backbone, [*views.unlabelled, views.labelled]))
        z = [F.normalize(view.float(), dim=1) for view in embeddings[: len(views.unlabelled)]]
        is_frozen = views.progress < self.config.freeze_prototypes
        scores = [self.prototypes(z_t, is_frozen) for z_t in z]
        q = [self._code(number, z[number], views) for number in range(SWAV_GLOBAL_VIEWS)]
        losses = {"swav": swapped_prediction(scores, q, self.config.temperature)}
        return losses | self.labelled_losses(embeddings[-1], views)

    @torch.no_grad()
    def _code(self, number: int, z: Tensor, views: Views) -> Tensor:
        """Return the codes (B, K) of a global view's embeddings (B, D), and put these into the view's queue.

        The Sinkhorn iterations include the images of all processes, which each of them computes alike, and the queue
        once it is full and `queue_from` is reached.
        """
        queue = self.queue[number].clone()
        z, own = self.collectives.all_gather(z)
        codes = self._sinkhorn(z)[own]
        if not len(queue):
            return codes
        self.queue[number] = torch.cat([z.detach(), queue])[: len(queue)]
        if views.progress < self.config.queue_from:
            return codes
        # both, since only the device knows if the queue is full, and nobody waits for it
        return torch.where(queue[-1].any(), self._sinkhorn(torch.cat([z, queue]))[own], codes)

    def _sinkhorn(self, z: Tensor) -> Tensor:
        """Return the codes (N, K) of embeddings (N, D)."""
        return sinkhorn(self.prototypes(z), self.config.epsilon, self.config.sinkhorn_steps)
