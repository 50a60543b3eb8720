"""BYOL: predict a momentum network's projection of the image's other view (Grill et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbone import Backbone
from pipeline.recipe.base import Optimizer
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.heads import MomentumEncoder, cosine_momentum, projector
from selfsup.components.losses import byol
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views

FIRST = Policy(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=1.0)
SECOND = replace(FIRST, blur=0.1, solarize=0.2)
"""Policies T and T' of the two views."""


class Config(MethodConfig):
    """BYOL; the schedule is that of the authors' code for 100 epochs."""

    method: Literal["byol"] = "byol"
    optimizer: Optimizer = "lars"
    lr: float = Field(default_factory=ScaledRate(0.45), gt=0)
    weight_decay: float = Field(default=1e-6, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    hidden: int = Field(default=4096, ge=2)
    """Width of the hidden layer of projector and predictor."""
    dim: int = Field(default=256, ge=2)
    """Width of the embedding."""
    target_momentum: float = Field(default=0.99, ge=0, le=1)
    """Momentum of the target network at the start; it rises to 1 by a cosine."""

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return BYOL(self, backbone, setting)


class BYOL(Method):
    """An online network (encoder f, projector g, predictor q) and its target, a momentum copy of f and g."""

    family: ClassVar[Family] = "self-distillation"
    compares_images: ClassVar[bool] = False

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, None)
        self.config, self.size = config, setting.size
        self.head = projector([backbone.width, config.hidden, config.dim], norm=True)
        self.predictor = projector([config.dim, config.hidden, config.dim], norm=True)
        self.target = MomentumEncoder(nn.Sequential(backbone, self.head))

    def view_kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, FIRST), ViewKind(self.size, SECOND)]

    def losses(self, views: Views) -> dict[str, Tensor]:
        online = nn.Sequential(self.backbone, self.head)
        tau = cosine_momentum(self.config.target_momentum, views.progress)
        self.target.update_from(online, tau, views.step)
        q_1, q_2 = (self.predictor(online(view)) for view in views.unlabelled)
        z_1, z_2 = (self.target(view) for view in views.unlabelled)
        return {"byol": byol(q_1, z_2) + byol(q_2, z_1)}  # eq. 2, in both directions
