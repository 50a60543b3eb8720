"""SimCLR: find the other view of the same image among all views of the batch (Chen et al., ICML 2020)."""

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
from selfsup.components.losses import nt_xent
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat

POLICY = Policy()


class Config(MethodConfig):
    """SimCLR; the schedule is the paper's for small batches, 0.075 sqrt(batch) (appendix B.1), in 100 epochs."""

    method: Literal["simclr"] = "simclr"
    optimizer: Optimizer = "lars"
    lr: float = Field(default_factory=ScaledRate(1.2, root=True), gt=0)
    weight_decay: float = Field(default=1e-6, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    dim: int = Field(default=128, ge=2)
    """Width of the embedding."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature of the softmax over cosines."""

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return SimCLR(self, backbone, setting)


class SimCLR(Method):
    """An encoder f, the backbone, and a projection head g of two layers, each with a batch norm: h = f(x), z = g(h)."""

    family: ClassVar[Family] = "contrastive"

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.size = config, setting.size
        self.head = projector([backbone.width, backbone.width, config.dim], norm=True, norm_last=True)

    def view_kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, POLICY)] * 2

    def losses(self, views: Views) -> dict[str, Tensor]:
        h = forward_concat(self.backbone, [*views.unlabelled, views.labelled])
        z = forward_concat(self.head, h)
        pairs, own = self.collectives.all_gather(torch.stack(z[:2], dim=1).float())
        loss = nt_xent(pairs[:, 0], pairs[:, 1], self.config.temperature, own)
        return {"simclr": loss, **self.labelled_losses(z[-1], views)}
