"""SwAV: of each view the code is foretold that another view of the image has among prototypes (Caron et al., NeurIPS
2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.models.encoder import Encoder
from selfsup.components.config import MethodConfig
from selfsup.components.heads import Prototypes, projector
from selfsup.components.kmeans import fitting_count
from selfsup.components.losses import sinkhorn, swapped_prediction
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat
from selfsup.components.multicrop import multi_crop

POLICY = Policy(area=(0.14, 1.0))
SMALL = Policy(area=(0.05, 0.14))
LARGE_VIEWS, QUEUE = 2, 3840


class Config(MethodConfig):
    """SwAV."""

    method: Literal["swav"] = "swav"
    small_views: int = Field(default=6, ge=0)
    """Smaller views of each image, 3/7 as large."""
    hidden: int = Field(default=2048, ge=2)
    """Width of the projector's hidden layer."""
    dim: int = Field(default=128, ge=2)
    """Of the embedding."""
    prototypes: int | None = Field(default=None, ge=2)
    """Null for 3,000, or a tenth of the images, if those are fewer."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the softmax over scores."""
    epsilon: float = Field(default=0.05, gt=0)
    """How soft codes are."""
    sinkhorn_steps: int = Field(default=3, ge=1)
    """Iterations that even out how much prototypes are used."""
    frozen: float = Field(default=0.01, ge=0, le=1)
    """Share of the steps at the start in which prototypes do not move."""
    queue: int | None = Field(default=None, ge=0)
    """Images seen before that are counted in when codes are evened out; null for none, or where a batch is smaller than
    the prototypes for 3,840, or as many as there are, if those are fewer."""
    queue_from: float = Field(default=0.15, ge=0, le=1)
    """Share of the steps after which they are."""

    def build(self, backbone: Encoder, setting: StageSetting) -> Method:
        """The method, its projector and prototypes fresh."""
        return SwAV(self, backbone, setting)


class SwAV(Method):
    """A projector of two layers and prototypes behind a backbone."""

    family: ClassVar[Family] = "clustering"
    queue: Tensor

    def __init__(self, config: Config, backbone: Encoder, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.size = config, setting.size
        self.head = projector([backbone.width, config.hidden, config.dim], norm=True)
        count = config.prototypes or fitting_count(setting.images)
        self.prototypes = Prototypes(config.dim, count)
        needed = min(QUEUE, setting.images) if setting.batch < count else 0
        length = needed if config.queue is None else config.queue
        self.register_buffer("queue", torch.zeros(LARGE_VIEWS, length, config.dim))

    def kinds(self) -> Sequence[ViewKind]:
        return multi_crop(self.size, [POLICY] * LARGE_VIEWS, [SMALL] * self.config.small_views)

    def losses(self, views: Views) -> dict[str, Tensor]:
        embeddings = forward_concat(self.head, forward_concat(self.backbone, [*views.unlabelled, views.labelled]))
        unit = [F.normalize(each.float(), dim=1) for each in embeddings[: len(views.unlabelled)]]
        is_frozen = views.progress < self.config.frozen
        scores = [self.prototypes(each, is_frozen) for each in unit]
        codes = [self._code(number, unit[number], views) for number in range(LARGE_VIEWS)]
        found = {"swav": swapped_prediction(scores, codes, self.config.temperature)}
        return found | (self.supervised(embeddings[-1], views) if views.labelled is not None else {})

    @torch.no_grad()
    def _code(self, number: int, embeddings: Tensor, views: Views) -> Tensor:
        """Codes of a large view, evened out over the batch and, late enough, what the queue remembers of this view."""
        held = self.queue[number]
        is_full = len(held) > 0 and bool(held[-1].any()) and views.progress >= self.config.queue_from
        every = torch.cat([embeddings, held]) if is_full else embeddings
        codes = sinkhorn(self.prototypes(every), self.config.epsilon, self.config.sinkhorn_steps)[: len(embeddings)]
        if len(held):
            self.queue[number] = torch.cat([embeddings.detach(), held])[: len(held)]
        return codes
