"""DeepCluster-v2: classify images by the clusters that their embeddings formed in the previous epoch (Caron et al.,
ECCV 2018; version 2 is in appendix D of SwAV, NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.models.backbone import Backbone
from pipeline.recipe.base import Optimizer
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.heads import projector
from selfsup.components.kmeans import default_cluster_count, dot_products, spherical_kmeans
from selfsup.components.method import Family, Method, StageSetting, ViewKind, Views, forward_concat
from selfsup.components.multicrop import SWAV_GLOBAL_VIEWS, swav_views


class Config(MethodConfig):
    """DeepCluster-v2; the schedule is that of the authors' code for 400 epochs of batches of 4,096."""

    method: Literal["deepclusterv2"] = "deepclusterv2"
    optimizer: Optimizer = "lars"
    lr: float = Field(default_factory=ScaledRate(4.8, batch=4096), gt=0)
    weight_decay: float = Field(default=1e-6, ge=0)
    warmup: float = Field(default=0.025, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    local_views: int = Field(default=0, ge=0)
    """Local views of each image: smaller crops, about 3/7 as large on a side: 96 pixels for 224."""
    hidden: int = Field(default=2048, ge=2)
    """Width of the projector's hidden layer."""
    dim: int = Field(default=128, ge=2)
    """Width of the embedding."""
    clusterings: int = Field(default=3, ge=1)
    """Independent clusterings of the images."""
    clusters: int | None = Field(default=None, ge=2)
    """Clusters in each of them; null for 3,000, or a tenth of the images if that is less."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature of the softmax over cosines."""
    iterations: int = Field(default=10, ge=1)
    """Iterations of k-means, which runs once an epoch."""

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return DeepCluster(self, backbone, setting)


class DeepCluster(Method):
    """An encoder with a projector, and clusterings of the images as it saw them last.

    `memory` (views, images, D): the latest embeddings of the global views. `centroids` (clusterings, K, D) and
    `assignments` (clusterings, images) are k-means of it in the epoch `epoch`.
    """

    family: ClassVar[Family] = "clustering"
    idempotent_buffers: ClassVar[frozenset[str]] = frozenset({"centroids", "memory", "assignments", "epoch"})
    centroids: Tensor
    memory: Tensor
    assignments: Tensor
    epoch: Tensor

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.setting = config, setting
        self.head = projector([backbone.width, config.hidden, config.dim], norm=True)
        count = config.clusters or default_cluster_count(setting.images)
        self.register_buffer("centroids", torch.zeros(config.clusterings, count, config.dim))
        self.register_buffer("memory", torch.zeros(SWAV_GLOBAL_VIEWS, setting.images, config.dim))
        self.register_buffer("assignments", torch.full((config.clusterings, setting.images), -1))
        self.register_buffer("epoch", torch.tensor(-1))
        self._clustered: int | None = None
        """`epoch`, known to the host; None until it is read, since a state may be loaded before."""

    def view_kinds(self) -> Sequence[ViewKind]:
        return swav_views(self.setting.size, self.config.local_views)

    @torch.no_grad()
    def initialize(self, batches: Iterable[tuple[Tensor, list[Tensor]]]) -> None:
        """Fill the memory, so that there is something to cluster before the first epoch."""
        for index, views in batches:
            self._remember(index, [self._embed(view) for view in views[:SWAV_GLOBAL_VIEWS]])

    def losses(self, views: Views) -> dict[str, Tensor]:
        self._cluster(views.epoch)
        embeddings = forward_concat(self.head, forward_concat(self.backbone, [*views.unlabelled, views.labelled]))
        z = [F.normalize(view.float(), dim=1) for view in embeddings[: len(views.unlabelled)]]
        cross_entropies = [
            F.cross_entropy(dot_products(z_t, centroids) / self.config.temperature, assignments[views.index])
            for centroids, assignments in zip(self.centroids, self.assignments, strict=True)
            for z_t in z
        ]
        self._remember(views.index, z[:SWAV_GLOBAL_VIEWS])
        return {"deepclusterv2": torch.stack(cross_entropies).mean(), **self.labelled_losses(embeddings[-1], views)}

    def _embed(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.backbone(images)).float(), dim=1)

    @torch.no_grad()
    def _remember(self, index: Tensor, embeddings: list[Tensor]) -> None:
        """Store the embeddings (B, D) of each global view of these images, and of those of all processes."""
        index = self.collectives.all_gather(index).rows
        self.memory[:, index] = self.collectives.all_gather(torch.stack(embeddings, dim=1)).rows.transpose(0, 1)

    @torch.no_grad()
    def _cluster(self, epoch: int) -> None:
        """Cluster the memory once an epoch; each clustering reads one of the global views."""
        if self._clustered is None:
            self._clustered = int(self.epoch)
        if self._clustered == epoch:
            return
        if self.collectives.rank == 0:  # what it draws at random, and how it rounds, differ between processes
            for number, centroids in enumerate(self.centroids):
                points = self.memory[number % SWAV_GLOBAL_VIEWS]
                found = spherical_kmeans(points, len(centroids), self.config.iterations)
                self.centroids[number], self.assignments[number] = found
        self.collectives.broadcast(self.centroids)
        self.collectives.broadcast(self.assignments)
        self._clustered = epoch  # not before: memory may run out, and the pass is tried again
        self.epoch.fill_(epoch)
