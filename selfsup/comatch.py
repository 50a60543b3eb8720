"""CoMatch: learn classes from a few labels, and from pseudo labels that a graph of alike images smooths (Li, Xiong and
Hoi, ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.models.backbone import Backbone
from pipeline.recipe.base import Optimizer
from pipeline.recipe.stage import CROSS_ENTROPY
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.heads import projector
from selfsup.components.kmeans import dot_products
from selfsup.components.losses import graph_contrast, label_graph, mean_cross_entropy
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat

WEAK = Policy(area=(0.2, 1.0), jitter=0, grayscale=0, blur=0)
STRONG = Policy(area=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
"""Of both strong views; for one of them the paper draws operations by RandAugment."""
MEANS = 32
"""Steps whose mean probabilities tell how often each class is predicted."""
QUEUE_BATCHES = 5
"""Batches that have as many images as there are whose labels smooth pseudo labels."""


class Config(MethodConfig):
    """CoMatch, which needs `labels`; the schedule is the authors' for CIFAR-10."""

    method: Literal["comatch"] = "comatch"
    labelled_loss: ClassVar[str | None] = CROSS_ENTROPY
    optimizer: Optimizer = "sgd"
    lr: float = Field(default_factory=ScaledRate(0.03, batch=512), gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    nesterov: bool = True
    warmup: float = Field(default=0, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    dim: int = Field(default=64, ge=2)
    """Width of the embedding."""
    temperature: float = Field(default=0.2, gt=0)
    """Temperature of the softmax over cosines."""
    threshold: float = Field(default=0.95, ge=0, le=1)
    """Probability from which on a pseudo label is learned."""
    graph_threshold: float = Field(default=0.8, ge=0, le=1)
    """Similarity of two pseudo labels from which on their images are neighbours."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Part of a pseudo label that is the mean of those of similar images, lately seen."""

    @model_validator(mode="after")
    def _has_labels(self) -> Config:
        if self.labels is None:
            raise ValueError("comatch learns from some labelled images: write labels: {}, or {per_class: 20} for a few")
        return self

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return CoMatch(self, backbone, setting)


class PseudoLabels(NamedTuple):
    """The pseudo labels of unlabelled images (B, K), as predicted and aligned, and as smoothed."""

    aligned: Tensor
    smoothed: Tensor


class CoMatch(Method):
    """An encoder, a linear classifier, and a projection head of two layers.

    `means` (32, K): mean probabilities of the latest steps; `queue` (Q, D) and `queue_labels` (Q, K): embeddings and
    labels of the latest images. Newest first, 0 where there were none yet.
    """

    family: ClassVar[Family] = "contrastive"
    means: Tensor
    queue: Tensor
    queue_labels: Tensor

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels, config.labelled_loss)
        self.config, self.size = config, setting.size
        classes = max(len(setting.class_names), 2)
        self.classifier = nn.Linear(backbone.width, classes)
        self.head = projector([backbone.width, backbone.width, config.dim])
        self.register_buffer("means", torch.zeros(MEANS, classes))
        self.register_buffer("queue", torch.zeros(QUEUE_BATCHES * setting.batch, config.dim))
        self.register_buffer("queue_labels", torch.zeros(QUEUE_BATCHES * setting.batch, classes))

    def view_kinds(self) -> Sequence[ViewKind]:
        strong = ViewKind(self.size, STRONG)
        return [ViewKind(self.size, WEAK, is_plain=True), strong, strong]

    def losses(self, views: Views) -> dict[str, Tensor]:
        h = forward_concat(self.backbone, [*views.unlabelled, views.labelled])
        logits = [scores.float() for scores in forward_concat(self.classifier, [*h[:2], *h[3:]])]
        z = [F.normalize(each.float(), dim=1) for each in forward_concat(self.head, h)]
        pseudo = self._pseudo_labels(logits[0].detach(), z[0].detach())
        self._enqueue(z[0].detach(), pseudo.aligned)
        labelled = {}
        if views.classes is not None:
            self._enqueue(z[3].detach(), F.one_hot(views.classes, pseudo.aligned.shape[1]).float())
            labelled = {CROSS_ENTROPY: mean_cross_entropy(logits[2], views.classes)}
        is_sure = pseudo.smoothed.amax(dim=1) >= self.config.threshold
        pairs, own = self.collectives.all_gather(torch.stack(z[1:3], dim=1))
        labels = self.collectives.all_gather(pseudo.smoothed).rows
        graph = label_graph(labels, self.config.graph_threshold, own)
        return {
            "pseudo": (is_sure * F.cross_entropy(logits[1], pseudo.smoothed, reduction="none")).mean(),
            "graph": graph_contrast(pairs[:, 0], pairs[:, 1], graph, self.config.temperature, own),
            **labelled,
        }

    @torch.no_grad()
    def _pseudo_labels(self, logits: Tensor, z: Tensor) -> PseudoLabels:
        """Return the pseudo labels of the weak views' logits (B, K) and embeddings (B, D).

        Aligned: divided by how often each class was predicted lately, so that all are predicted alike. Smoothed: mixed
        with the labels of similar images (eq. 4 to 6), once the queue is full.
        """
        probs = logits.softmax(dim=1)
        mean = self.collectives.all_gather(probs).rows.mean(dim=0, keepdim=True)
        self.means.copy_(torch.cat([mean, self.means])[:MEANS])
        aligned = F.normalize(probs / self.means.sum(dim=0), p=1, dim=1)
        similar = (dot_products(z, self.queue) / self.config.temperature).softmax(dim=1)
        smoothed = torch.lerp(aligned, dot_products(similar, self.queue_labels.T), self.config.smoothing)
        return PseudoLabels(aligned, torch.where(self.queue_labels[-1].any(), smoothed, aligned))

    @torch.no_grad()
    def _enqueue(self, embeddings: Tensor, labels: Tensor) -> None:
        """Put the embeddings (N, D) and labels (N, K) of all processes before those that stay."""
        for queue, new in ((self.queue, embeddings), (self.queue_labels, labels)):
            queue.copy_(torch.cat([self.collectives.all_gather(new).rows, queue])[: len(queue)])
