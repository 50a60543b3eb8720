"""STARTUP: contrast images of a new domain, and keep telling them apart as a classifier of other classes does (Phoo and
Hariharan, ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.backbone import Backbone
from pipeline.recipe.base import Name, Optimizer
from pipeline.recipe.stage import CROSS_ENTROPY
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.heads import projector
from selfsup.components.losses import mean_cross_entropy, nt_xent
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat

POLICY = Policy()
WHOLE = Policy(area=(1.0, 1.0), flip=0, jitter=0, grayscale=0, blur=0)
"""What the teacher sees."""


class Config(MethodConfig):
    """STARTUP. With `labels`, the cross entropy of labelled images is learned beside it: of those that the teacher
    learned from, as in the paper, or of any other set of `data`. The schedule is the authors'."""

    method: Literal["startup"] = "startup"
    labelled_loss: ClassVar[str | None] = CROSS_ENTROPY
    taught_task: ClassVar[str | None] = "classification"
    optimizer: Optimizer = "sgd"
    lr: float = Field(default_factory=ScaledRate(0.05), gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    decay: Literal["matrices", "all"] = "all"
    warmup: float = Field(default=0, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    teacher: Name
    """The classifier of the recipe whose distributions over its classes are learned."""
    dim: int = Field(default=128, ge=2)
    """Width of the embedding."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the softmax over cosines."""

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return Startup(self, backbone, setting)


class Startup(Method):
    """SimCLR's encoder and head, and a linear classifier of the teacher's classes.

    Labelled images of the same classes, in the same order, are learned by the same classifier, and others by one of
    their own.
    """

    family: ClassVar[Family] = "contrastive"

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels, config.labelled_loss)
        self.config, self.size, self.teacher = config, setting.size, setting.teacher
        self.head = projector([backbone.width, backbone.width, config.dim], norm=True, norm_last=True)
        taught = setting.teacher.space.classes if setting.teacher else ("", "")
        self.classifier = nn.Linear(backbone.width, len(taught))
        has_others = bool(setting.class_names) and setting.class_names != taught
        self.other_classifier = nn.Linear(backbone.width, len(setting.class_names)) if has_others else self.classifier

    def view_kinds(self) -> Sequence[ViewKind]:
        augmented = ViewKind(self.size, POLICY)
        return [augmented, augmented, ViewKind(self.size, WHOLE, is_plain=True)]

    def losses(self, views: Views) -> dict[str, Tensor]:
        assert self.teacher is not None
        *augmented, whole = views.unlabelled
        h = forward_concat(self.backbone, [*augmented, views.labelled])
        z = forward_concat(self.head, h[:2])
        pairs, own = self.collectives.all_gather(torch.stack(z, dim=1).float())
        taught, probs = torch.cat([self.classifier(each) for each in h[:2]]), self.teacher.probs(whole).repeat(2, 1)
        losses = {
            "simclr": nt_xent(pairs[:, 0], pairs[:, 1], self.config.temperature, own),
            "teacher": F.kl_div(taught.float().log_softmax(dim=1), probs, reduction="batchmean"),
        }
        if views.classes is not None:
            losses[CROSS_ENTROPY] = mean_cross_entropy(self.other_classifier(h[2]).float(), views.classes)
        return losses
