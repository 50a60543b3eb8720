"""What the configurations of all methods have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from pipeline.backbone import statistics
from pipeline.errors import ConfigError
from pipeline.stages import PUBLISHED, StageConfig
from pipeline.weights import find_weights
from selfsup.parts.encoder import Encoder
from selfsup.parts.method import Method, Setting

TAKE_LABELS = ("contrastive", "clustering")
"""The families that take labelled images beside the others."""


class MethodConfig(StageConfig, ABC):
    """A stage with a method of its own."""

    @abstractmethod
    def build(self, backbone: Encoder, setting: Setting) -> Method:
        """The method, all but its backbone fresh. ConfigError if it can't use the backbone."""

    def on(self, encoder: Encoder, setting: Setting) -> Method:
        """The method as the stage uses it. ConfigError if it can't use the backbone, or takes no labels."""
        method = self.build(encoder, setting)
        if self.labels is not None and method.family not in TAKE_LABELS:
            raise ConfigError(
                f"labels: {self.method!r} takes no labelled images beside the others; methods that contrast or cluster "
                "do, such as simclr, mocov2, swav and deepclusterv2."
            )
        if self.trainable == "norm":
            encoder.train_norms_alone()
        return method

    def check(self) -> None:
        """The backbone and its weights are there, and the method can use it. Of a stage whose start is known."""
        assert self.backbone is not None
        assert self.image_size is not None
        if self.from_weights and self.start != PUBLISHED:
            find_weights(self.start or "")
        with torch.device("meta"):  # no memory, no arithmetic
            encoder = Encoder(self.backbone, self.image_size, statistics(self.backbone))
            self.on(encoder, Setting(self.image_size, 2 * self.batch, self.batch, 2))
