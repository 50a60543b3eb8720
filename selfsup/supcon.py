"""SupCon: find all views of the image's class among the views of the batch (Khosla et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.models.backbone import Backbone
from pipeline.recipe.base import Optimizer
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.heads import projector
from selfsup.components.losses import supcon
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat

POLICY = Policy(area=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0)
BASE_TEMPERATURE = 0.07
"""The authors' code, for which the learning rate is, multiplies the loss by the temperature over this."""


class Config(MethodConfig):
    """SupCon, which learns from the classes of its images; schedule and views are the authors' for CIFAR-10."""

    method: Literal["supcon"] = "supcon"
    learns_from_classes: ClassVar[bool] = True
    optimizer: Optimizer = "sgd"
    lr: float = Field(default_factory=ScaledRate(0.5, batch=1024), gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    decay: Literal["matrices", "all"] = "all"
    warmup: float = Field(default=0.01, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    dim: int = Field(default=128, ge=2)
    """Width of the embedding."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature of the softmax over cosines."""

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return SupCon(self, backbone, setting)


class SupCon(Method):
    """An encoder and a projection head of two layers, on two views of every image.

    `classes` (images,): the class number of each image of the set. The only positive of an image without a class is its
    other view, as in SimCLR: it is a class of its own, with a negative number.
    """

    family: ClassVar[Family] = "contrastive"
    classes: Tensor

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.size = config, setting.size
        self.head = projector([backbone.width, backbone.width, config.dim])
        alone = -1 - torch.arange(setting.images)
        classes = alone if setting.classes is None else torch.where(setting.classes < 0, alone, setting.classes)
        self.register_buffer("classes", classes, persistent=False)

    def view_kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, POLICY)] * 2

    def losses(self, views: Views) -> dict[str, Tensor]:
        z = torch.cat(forward_concat(self.head, forward_concat(self.backbone, views.unlabelled)))
        everyone, own = self.collectives.all_gather(z.float())
        classes = self.collectives.all_gather(self.classes[views.index].repeat(2)).rows
        loss = supcon(everyone, classes, self.config.temperature, own)
        return {"supcon": self.config.temperature / BASE_TEMPERATURE * loss}
