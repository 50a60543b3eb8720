"""BYOL: a network foretells what a slowly moving copy of it says of the image's other view (Grill et al., NeurIPS
2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from selfsup.components.config import MethodConfig
from selfsup.components.heads import MomentumEncoder, cosine_momentum, projector
from selfsup.components.losses import byol
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views

POLICY = Policy(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=1.0)
OTHER = replace(POLICY, blur=0.1, solarize=0.2)
"""The second view's."""


class Config(MethodConfig):
    """BYOL."""

    method: Literal["byol"] = "byol"
    hidden: int = Field(default=4096, ge=2)
    """Width of the hidden layer of projector and predictor."""
    dim: int = Field(default=256, ge=2)
    """Of the embedding."""
    target_momentum: float = Field(default=0.99, ge=0, le=1)
    """Of the copy at the start; it rises to 1 by a cosine."""

    def build(self, backbone: Encoder, setting: StageSetting) -> Method:
        """The method, its projector and predictor fresh."""
        return BYOL(self, backbone, setting)


class BYOL(Method):
    """An online network with a predictor, and its target."""

    family: ClassVar[Family] = "self-distillation"
    compares: ClassVar[bool] = False

    def __init__(self, config: Config, backbone: Encoder, setting: StageSetting) -> None:
        super().__init__(backbone, None)
        self.config, self.size = config, setting.size
        self.head = projector([backbone.width, config.hidden, config.dim], norm=True)
        self.predictor = projector([config.dim, config.hidden, config.dim], norm=True)
        self.target = MomentumEncoder(nn.Sequential(backbone, self.head))

    def kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, POLICY), ViewKind(self.size, OTHER)]

    def losses(self, views: Views) -> dict[str, Tensor]:
        online = nn.Sequential(self.backbone, self.head)
        self.target.catch_up(online, cosine_momentum(self.config.target_momentum, views.progress), views.step)
        first, second = (self.predictor(online(view)) for view in views.unlabelled)
        wanted_first, wanted_second = (self.target(view) for view in views.unlabelled)
        return {"byol": byol(first, wanted_second) + byol(second, wanted_first)}
