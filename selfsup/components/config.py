"""What the configurations of all methods have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from pipeline.errors import ConfigError
from pipeline.models.backbone import statistics
from pipeline.models.encoder import Encoder
from pipeline.recipe.base import NamedBackbone
from pipeline.recipe.stage import StageConfig
from selfsup.components.method import Method, StageSetting

TAKE_LABELS = ("contrastive", "clustering")
"""The families that take labelled images beside the others."""


class MethodConfig(StageConfig, ABC):
    """A stage with a method of its own."""

    @abstractmethod
    def build(self, backbone: Encoder, setting: StageSetting) -> Method:
        """The method, all but its backbone fresh. ConfigError if it can't use the backbone."""

    def on(self, encoder: Encoder, setting: StageSetting) -> Method:
        """The method as the stage uses it. ConfigError if it can't use the backbone, or takes no labels."""
        method = self.build(encoder, setting)
        if self.labels is not None and method.family not in TAKE_LABELS:
            raise ConfigError(
                f"labels: {self.method!r} takes no labelled images beside the others; methods that contrast or cluster "
                "do, such as simclr, mocov2, swav and deepclusterv2."
            )
        if self.accumulate > 1 and method.compares:
            raise ConfigError(
                f"accumulate is {self.accumulate}, but {self.method!r} compares the images of a batch with each other: "
                "set accumulate to 1, and batch to what memory holds."
            )
        if self.trainable == "norm":
            if not encoder.norms():
                raise ConfigError(f"trainable: norm, but {encoder.name!r} has no normalisation layer: train all of it.")
            encoder.train_norms_alone()
        return method

    def named_backbones(self) -> Sequence[NamedBackbone]:
        """Return the backbone, if it starts from weights. Of a stage whose start is known."""
        assert self.backbone is not None
        assert self.image_size is not None
        return [NamedBackbone(self.backbone, self.image_size, self.start)] if self.from_weights else []

    def check(self) -> None:
        """The method can use the backbone. Of a stage whose start is known."""
        assert self.backbone is not None
        assert self.image_size is not None
        with torch.device("meta"):  # no memory, no arithmetic
            encoder = Encoder(self.backbone, self.image_size, statistics(self.backbone))
            method = self.on(encoder, StageSetting(self.image_size, 2 * self.batch, self.batch))
            for side in {kind.size for kind in method.kinds()}:
                self._check_side(encoder.eval(), side)

    def _check_side(self, encoder: Encoder, side: int) -> None:
        try:
            encoder.model(torch.empty(2, 3, side, side))
        except Exception as error:  # whatever a model raises that can't take them
            raise ConfigError(
                f"{self.method!r} shows the backbone views of {side} x {side} pixels, which {encoder.name!r} can't "
                "take: "
                f"{str(error).splitlines()[0]} Set another image_size, no small_views, or another backbone."
            ) from error
