"""SimCLR: two views of an image are each other's only match among all views of the batch (Chen et al., ICML 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from pipeline.models.encoder import Encoder
from selfsup.components.config import MethodConfig
from selfsup.components.heads import projector
from selfsup.components.losses import nt_xent
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat

POLICY = Policy()


class Config(MethodConfig):
    """SimCLR."""

    method: Literal["simclr"] = "simclr"
    dim: int = Field(default=128, ge=2)
    """Of the embedding."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the softmax over cosines."""

    def build(self, backbone: Encoder, setting: StageSetting) -> Method:
        """The method, its head fresh."""
        return SimCLR(self, backbone, setting)


class SimCLR(Method):
    """A backbone and a perceptron of one hidden layer behind it."""

    family: ClassVar[Family] = "contrastive"

    def __init__(self, config: Config, backbone: Encoder, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.size = config, setting.size
        self.head = projector([backbone.width, backbone.width, config.dim])

    def kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, POLICY)] * 2

    def losses(self, views: Views) -> dict[str, Tensor]:
        features = forward_concat(self.backbone, [*views.unlabelled, views.labelled])
        first, second, *labelled = forward_concat(self.head, features)
        found = {"simclr": nt_xent(first, second, self.config.temperature)}
        return found | (self.supervised(labelled[0], views) if labelled else {})
