"""DINO: match, from any view, what a momentum teacher outputs for the global views (Caron et al., ICCV 2021)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.models.backbone import Backbone
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.heads import DINOHead, MomentumEncoder, cosine_momentum
from selfsup.components.losses import dino
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views, forward_concat
from selfsup.components.multicrop import multi_crop

GLOBAL_CROP = Policy(area=(0.4, 1.0), brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=1.0)
SECOND_GLOBAL_CROP = replace(GLOBAL_CROP, blur=0.1, solarize=0.2)
LOCAL_CROP = replace(GLOBAL_CROP, area=(0.05, 0.4), blur=0.5)
GLOBAL_VIEWS = 2


class Config(MethodConfig):
    """DINO; the schedule is the paper's for vision transformers in 100 epochs."""

    method: Literal["dino"] = "dino"
    lr: float = Field(default_factory=ScaledRate(5e-4), gt=0)
    weight_decay: float = Field(default=0.04, ge=0)
    weight_decay_end: float | None = Field(default=0.4, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    clip: float | None = Field(default=3.0, gt=0)
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    local_views: int = Field(default=8, ge=0)
    """Local views of each image: smaller crops, about 3/7 as large on a side: 96 pixels for 224."""
    hidden: int = Field(default=2048, ge=2)
    """Width of the head's hidden layers."""
    dim: int = Field(default=256, ge=2)
    """Width of the head's bottleneck."""
    outputs: int = Field(default=4096, ge=2)
    """Outputs of the head; the paper has 65,536 for a million images."""
    teacher_momentum: float = Field(default=0.996, ge=0, le=1)
    """Momentum of the teacher at the start; it rises to 1 by a cosine. The authors advise 0.9995 for batches of 256."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature of the student's softmax."""
    teacher_temperature: float = Field(default=0.07, gt=0)
    """Temperature of the teacher's softmax: smaller, which sharpens it."""
    teacher_temperature_start: float = Field(default=0.04, gt=0)
    """Temperature of the teacher's softmax at the start; it rises linearly. `teacher_temperature` if less."""
    teacher_warmup: float = Field(default=0.3, ge=0, le=1)
    """Share of the steps in which the teacher's temperature rises; the paper has 30 of 100 epochs."""
    center_momentum: float = Field(default=0.9, ge=0, le=1)
    """Momentum of the center, which is subtracted from the teacher's outputs."""
    freeze_last_layer: float = Field(default=0.01, ge=0, le=1)
    """Share of the steps at the start in which the head's last layer is frozen."""

    @model_validator(mode="after")
    def _check_temperatures(self) -> Config:
        for key in ("teacher_temperature", "teacher_temperature_start"):
            if (value := getattr(self, key)) >= self.temperature:
                raise ValueError(f"{key} ({value}) has to be below temperature ({self.temperature})")
        return self

    def teacher_temperature_at(self, progress: float) -> float:
        """Return the temperature of the teacher's softmax at `progress` in [0, 1]."""
        done = min(progress / self.teacher_warmup, 1.0) if self.teacher_warmup else 1.0
        start = min(self.teacher_temperature_start, self.teacher_temperature)
        return start + done * (self.teacher_temperature - start)

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return DINO(self, backbone, setting)


class DINO(Method):
    """A student g_s, its momentum teacher g_t, and the center C of the teacher's outputs."""

    family: ClassVar[Family] = "self-distillation"
    center: Tensor

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, None)
        self.config, self.size = config, setting.size
        self.head = DINOHead([backbone.width, config.hidden, config.hidden, config.dim], config.outputs)
        self.teacher = MomentumEncoder(nn.Sequential(backbone, self.head))
        self.register_buffer("center", torch.zeros(config.outputs))

    def view_kinds(self) -> Sequence[ViewKind]:
        return multi_crop(self.size, [GLOBAL_CROP, SECOND_GLOBAL_CROP], [LOCAL_CROP] * self.config.local_views)

    def losses(self, views: Views) -> dict[str, Tensor]:
        student = nn.Sequential(self.backbone, self.head)
        self.teacher.update_from(student, cosine_momentum(self.config.teacher_momentum, views.progress), views.step)
        g_t = forward_concat(self.teacher, views.unlabelled[:GLOBAL_VIEWS])
        head = functools.partial(self.head, is_frozen=views.progress < self.config.freeze_last_layer)
        g_s = forward_concat(head, forward_concat(self.backbone, views.unlabelled))
        temperatures = (self.config.temperature, self.config.teacher_temperature_at(views.progress))
        loss = dino(g_s, g_t, self.center.clone(), temperatures)
        self._update_center(torch.cat(g_t))
        return {"dino": loss}

    @torch.no_grad()
    def _update_center(self, outputs: Tensor) -> None:
        """Set C to m C + (1 - m) times the mean of the teacher's outputs (eq. 4), after it was used."""
        self.center.lerp_(self.collectives.mean(outputs.float()), 1 - self.config.center_momentum)
