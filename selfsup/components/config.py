"""Base class of every method's configuration: the keys of a stage, and how the method is built and checked."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import model_validator

from pipeline.errors import ConfigError, first_line
from pipeline.models.backbone import Backbone
from pipeline.models.timm_models import statistics
from pipeline.recipe.base import NamedBackbone
from pipeline.recipe.stage import StageConfig
from selfsup.components.method import Method, StageSetting

LABELLED_FAMILIES = ("contrastive", "clustering")
"""Families whose methods take labelled images beside the unlabelled ones."""


@dataclasses.dataclass(frozen=True)
class ScaledRate:
    """A published learning rate for `batch` images, scaled to a stage's batch: default of a method's `lr`.

    In proportion to the batch (Goyal et al., 2017), or with `root` to its square root, as SimCLR's appendix B.1 has it
    for small batches.

        lr: float = Field(default_factory=ScaledRate(0.03, batch=256), gt=0)
    """

    rate: float
    batch: int = 256
    root: bool = False

    def __call__(self, settings: dict[str, Any]) -> float:
        share: float = settings["batch"] / self.batch
        return float(f"{self.rate * (share**0.5 if self.root else share):.6g}")

    def __str__(self) -> str:
        share = f"batch / {self.batch}"
        return f"{self.rate:g} {f'sqrt({share})' if self.root else share}"


class MethodConfig(StageConfig, ABC):
    """Configuration of a stage with its method's own keys, none of which may be a key of `StageConfig`:

    method: Literal["simclr"] = "simclr"
    temperature: float = Field(default=0.1, gt=0)

    Keys of the schedule that a method states again have the defaults that it was published with.
    """

    @model_validator(mode="after")
    def _check_rate(self) -> MethodConfig:
        published = type(self).model_fields["optimizer"].default
        if self.optimizer != published and "lr" not in self.model_fields_set:
            raise ValueError(
                f"optimizer is {self.optimizer!r}, but lr ({self.lr:g}) is the one that {self.method!r} was published "
                f"with for {published!r}: give lr as well"
            )
        return self

    @abstractmethod
    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        """Build the method with fresh heads: `return SimCLR(self, backbone, setting)`.

        Raises ConfigError if the method can't use the backbone.
        """

    def build_for_stage(self, backbone: Backbone, setting: StageSetting) -> Method:
        """Build the method and freeze what the stage does not train.

        Raises ConfigError if it can't use the backbone, or can't do what the stage asks for: labels, accumulation.
        """
        method = self.build(backbone, setting)
        if self.labels is not None and (method.family not in LABELLED_FAMILIES or self.learns_from_classes):
            raise ConfigError(
                f"labels: {self.method!r} takes no labelled images beside the others; methods without labels that "
                "contrast or cluster do, such as simclr, mocov2, swav and deepclusterv2."
            )
        if self.accumulate > 1 and method.compares_images:
            raise ConfigError(
                f"accumulate is {self.accumulate}, but {self.method!r} compares the images of a batch with each other: "
                "set accumulate to 1, and batch to what memory holds."
            )
        if self.trainable == "norm":
            if not backbone.norm_layers():
                raise ConfigError(
                    f"trainable: norm, but {backbone.name!r} has no normalisation layer: train all of it."
                )
            for each in (backbone, *method.other_backbones().values()):
                each.train_only_norms()
        return method

    def named_backbones(self) -> Sequence[NamedBackbone]:
        """Return the backbone, and weights to start from. Needs a resolved stage: backbone and size filled in."""
        assert self.backbone is not None
        assert self.image_size is not None
        weights = self.start if self.from_weights else None
        return [NamedBackbone(self.backbone, self.image_size, weights, self.batch // self.accumulate)]

    def check(self) -> None:
        """Raise ConfigError if the method can't use the backbone. Needs a resolved stage, as `named_backbones`."""
        assert self.backbone is not None
        assert self.image_size is not None
        with torch.device("meta"):  # no memory, no arithmetic
            backbone = Backbone(self.backbone, self.image_size, statistics(self.backbone))
            method = self.build_for_stage(backbone, StageSetting(self.image_size, 2 * self.batch, self.batch))
            for size in {kind.size for kind in method.view_kinds()}:
                self._check_view_size(backbone.eval(), size)

    def _check_view_size(self, backbone: Backbone, size: int) -> None:
        try:
            backbone.model(torch.empty(2, 3, size, size))
        except Exception as error:  # models raise errors of any type for a size that they can't take
            raise ConfigError(
                f"{self.method!r} shows the backbone views of {size} x {size} pixels, which {backbone.name!r} can't "
                f"take: {first_line(error)} Set another image_size, no local_views, or another backbone."
            ) from error
