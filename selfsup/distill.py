"""Distillation from a teacher of the recipe: find the same images alike as it does, among those that it saw lately, and
the same parts of an image (LightlyTrain's third version; the queue is the classifier of "patient and consistent"
teaching, Beyer et al., CVPR 2022, without classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.models.backbone import Backbone
from pipeline.recipe.base import Name
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.losses import map_distillation, queue_distillation
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views

POLICY = Policy(area=(0.14, 1.0), brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=0)
MIN_QUEUE, MAX_QUEUE = 16, 8192


class Config(MethodConfig):
    """Distillation; the schedule is LightlyTrain's for vision transformers."""

    method: Literal["distill"] = "distill"
    lr: float = Field(default_factory=ScaledRate(5e-4, batch=1536, root=True), gt=0)
    weight_decay: float = Field(default=0.04, ge=0)
    teacher: Name
    """The teacher of the recipe whose features are learned."""
    temperature: float = Field(default=0.07, gt=0)
    """Temperature of the softmaxes over cosines, both teacher's and student's."""
    queue: int | None = Field(default=None, ge=2)
    """Images in the queue, at least `batch`; null for a third of the set, from 16, or the batch, to 8,192."""
    maps: float = Field(default=1.0, ge=0)
    """Weight of the loss between cells of the last maps; 0 for the vectors alone."""
    mixup: bool = True
    """True to show both a mean of two images each, with weights that are drawn for each step."""

    @model_validator(mode="after")
    def _queue_holds_a_batch(self) -> Config:
        if self.queue is not None and self.queue < self.batch:
            raise ValueError(f"queue ({self.queue}) is less than batch ({self.batch}), whose images it has to hold")
        return self

    @property
    def reads_maps(self) -> bool:
        return self.maps > 0

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return Distillation(self, backbone, setting)


class Distillation(Method):
    """Linear heads on the backbone's vector and last map, a frozen teacher, and a queue of the teacher's vectors.

    `queue` (K, D): unit vectors, newest first; 0 where there were none yet.
    """

    family: ClassVar[Family] = "distillation"
    queue: Tensor

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.size = config, setting.size
        self.teacher = setting.teacher
        width = setting.teacher.width if setting.teacher else backbone.width
        self.head = _linear(backbone.width, width)
        self.map_head = _linear(backbone.channels[-1], width) if config.reads_maps else None
        length = config.queue or max(min(setting.images // 3, MAX_QUEUE), MIN_QUEUE, setting.batch)
        self.register_buffer("queue", torch.zeros(length, width))

    def view_kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, POLICY)]

    def losses(self, views: Views) -> dict[str, Tensor]:
        assert self.teacher is not None
        images = mix_pairs(views.unlabelled[0]) if self.config.mixup else views.unlabelled[0]
        taught = self.teacher(images)
        vector, maps = self.backbone.readout(images) if self.map_head else (self.backbone(images), [])
        self._enqueue(self.collectives.all_gather(taught.vector).rows)
        losses = {"distill": queue_distillation(self.head(vector), taught.vector, self.queue, self.config.temperature)}
        if self.map_head is not None:
            cells = self.map_head(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            losses["maps"] = self.config.maps * map_distillation(cells, taught.map, self.config.temperature)
        return losses

    @torch.no_grad()
    def _enqueue(self, vectors: Tensor) -> None:
        """Put the vectors (N, D) of this step, of all processes, before those that stay."""
        self.queue.copy_(torch.cat([F.normalize(vectors, dim=1), self.queue])[: len(self.queue)])


def mix_pairs(images: Tensor) -> Tensor:
    """Return t x_i + (1 - t) x_j of images x (B, 3, S, S), each with another at random, t drawn from [0, 1] for all."""
    share = torch.rand((), device=images.device)
    order = torch.randperm(len(images), device=images.device)
    return images.lerp(images[order], 1 - share)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    return layer
