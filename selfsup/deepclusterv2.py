"""DeepCluster-v2: images are classified by the clusters that their embeddings formed in the epoch before (Caron et al.,
ECCV 2018; the second version is in appendix D of NeurIPS 2020's SwAV paper).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.models.encoder import Encoder
from selfsup.components.config import MethodConfig
from selfsup.components.heads import projector
from selfsup.components.kmeans import fitting_count, products, spherical_kmeans
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat
from selfsup.components.multicrop import multi_crop

POLICY = Policy(area=(0.14, 1.0))
SMALL = Policy(area=(0.05, 0.14))
LARGE_VIEWS = 2


class Config(MethodConfig):
    """DeepCluster-v2."""

    method: Literal["deepclusterv2"] = "deepclusterv2"
    small_views: int = Field(default=0, ge=0)
    """Smaller views of each image, 3/7 as large."""
    hidden: int = Field(default=2048, ge=2)
    """Width of the projector's hidden layer."""
    dim: int = Field(default=128, ge=2)
    """Of the embedding."""
    clusterings: int = Field(default=3, ge=1)
    """Independent divisions of the images into clusters."""
    clusters: int | None = Field(default=None, ge=2)
    """In each of them; null for 3,000, or a tenth of the images, if those are fewer."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the softmax over cosines."""
    iterations: int = Field(default=10, ge=1)
    """Of k-means, once an epoch."""

    def build(self, backbone: Encoder, setting: StageSetting) -> Method:
        """The method, its projector fresh."""
        return DeepCluster(self, backbone, setting)


class DeepCluster(Method):
    """A projector, the embeddings of all images as they were last seen, and centres that classify them."""

    family: ClassVar[Family] = "clustering"
    centres: Tensor
    bank: Tensor
    assigned: Tensor
    epoch: Tensor

    def __init__(self, config: Config, backbone: Encoder, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.setting = config, setting
        self.head = projector([backbone.width, config.hidden, config.dim], norm=True)
        count = config.clusters or fitting_count(setting.images)
        self.register_buffer("centres", torch.zeros(config.clusterings, count, config.dim))
        self.register_buffer("bank", torch.zeros(LARGE_VIEWS, setting.images, config.dim))
        self.register_buffer("assigned", torch.full((config.clusterings, setting.images), -1))
        self.register_buffer("epoch", torch.tensor(-1))

    def kinds(self) -> Sequence[ViewKind]:
        return multi_crop(self.setting.size, [POLICY] * LARGE_VIEWS, [SMALL] * self.config.small_views)

    @torch.no_grad()
    def begin(self, batches: Iterable[tuple[Tensor, list[Tensor]]]) -> None:
        """See every image once, so that there is something to cluster before the first epoch."""
        for index, views in batches:
            self._remember(index, [self._embed(view) for view in views[:LARGE_VIEWS]])

    def losses(self, views: Views) -> dict[str, Tensor]:
        self._cluster(views.epoch)
        embeddings = forward_concat(self.head, forward_concat(self.backbone, [*views.unlabelled, views.labelled]))
        unit = [F.normalize(each.float(), dim=1) for each in embeddings[: len(views.unlabelled)]]
        losses = [
            F.cross_entropy(products(each, centres) / self.config.temperature, assigned[views.index])
            for centres, assigned in zip(self.centres, self.assigned, strict=True)
            for each in unit
        ]
        self._remember(views.index, unit[:LARGE_VIEWS])
        found = {"deepclusterv2": torch.stack(losses).mean()}
        return found | (self.supervised(embeddings[-1], views) if views.labelled is not None else {})

    def _embed(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.backbone(images)).float(), dim=1)

    @torch.no_grad()
    def _remember(self, index: Tensor, embeddings: Sequence[Tensor]) -> None:
        for number, each in enumerate(embeddings):
            self.bank[number, index] = each.detach()

    @torch.no_grad()
    def _cluster(self, epoch: int) -> None:
        """Once an epoch, divide the images anew by what the epoch before left in the bank."""
        if int(self.epoch) == epoch:
            return
        self.epoch.fill_(epoch)
        for number, centres in enumerate(self.centres):
            points = self.bank[number % LARGE_VIEWS]
            found, self.assigned[number] = spherical_kmeans(points, len(centres), self.config.iterations)
            centres.copy_(found)
