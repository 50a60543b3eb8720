"""Training objective of a stage: color augmentation, the method's losses, and measures of collapse for the log."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.recipe.stage import PolicyConfig
from pipeline.training.objective import Objective
from selfsup.components.method import Method, ViewKind, Views
from selfsup.stages.collapse import effective_rank, spread
from selfsup.stages.color_jitter import ColorJitter

MEASURE_EVERY, MOST_MEASUREMENTS = 20, 50
"""Steps between measurements of the features, which wait for the device; more where there would be more of them."""
SPREAD, RANK = "feature spread", "feature rank"
"""Names of `spread` and `effective_rank` beside the losses in the log."""


def override_policies(kinds: Sequence[ViewKind], overrides: PolicyConfig) -> list[ViewKind]:
    """Return a method's kinds of views with the recipe's `augment`. Plain views keep theirs, local ones their area."""
    given = overrides.model_dump(exclude_none=True)
    for_local = {name: value for name, value in given.items() if name != "area"}

    def overridden(kind: ViewKind) -> ViewKind:
        changes = {} if kind.is_plain else for_local if kind.is_local else given
        return dataclasses.replace(kind, policy=dataclasses.replace(kind.policy, **changes))

    return list(map(overridden, kinds))


class StageObjective(Objective):
    """The sum of a method's losses over views of these kinds, which are first augmented in color.

    The augmented views have this memory format. Features are measured over the images of all processes if the method
    compares these, and else over those of each.
    """

    def __init__(
        self, method: Method, kinds: Sequence[ViewKind], memory_format: torch.memory_format = torch.contiguous_format
    ) -> None:
        super().__init__()
        self.method, self.memory_format, self.communicates = method, memory_format, method.communicates
        channels = method.backbone.image_channels
        self.color_jitters = nn.ModuleList(ColorJitter(kind, channels) for kind in kinds)

    def restored_buffers(self) -> list[Tensor]:
        idempotent = {f"method.{name}" for name in self.method.idempotent_buffers}
        return [buffer for name, buffer in self.named_buffers() if name not in idempotent]

    def amounts(self, batch: Views) -> dict[str, float]:
        return {"images": len(batch.keys), "labelled": 0 if batch.classes is None else len(batch.classes)}

    def forward(self, batch: Views, shares: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        unlabelled = [self._augment(*pair) for pair in zip(self.color_jitters, batch.unlabelled, strict=True)]
        labelled = None if batch.labelled is None else self._augment(self.color_jitters[0], batch.labelled)
        views = dataclasses.replace(batch, unlabelled=unlabelled, labelled=labelled)
        losses = {name: shares[self._amount_of(name)] * loss for name, loss in self.method.losses(views).items()}
        logged = {name: loss.detach() for name, loss in losses.items()}
        total = torch.stack(list(losses.values())).sum()
        if batch.step % max(MEASURE_EVERY, -(-batch.steps // MOST_MEASUREMENTS)) == 0:
            logged |= {name: shares["images"] * value for name, value in self._measure(unlabelled[0]).items()}
        return total, logged

    def _amount_of(self, loss: str) -> str:
        """Return the name of the amount that a loss is a mean over."""
        return "labelled" if loss == self.method.labelled_loss else "images"

    def _augment(self, jitter: nn.Module, images: Tensor) -> Tensor:
        augmented: Tensor = jitter(images).contiguous(memory_format=self.memory_format)
        return augmented

    @torch.no_grad()
    def _measure(self, images: Tensor) -> dict[str, Tensor]:
        """Measure the features of the backbone in eval mode, as it would be used; {} if there is nothing to measure."""
        backbone = self.method.backbone.eval()
        features = backbone(images)
        backbone.train(self.training)
        features = self.method.collectives.all_gather(features.float()).rows
        if len(features) < 2 or not bool(features.isfinite().all()):
            return {}
        return {SPREAD: spread(features), RANK: effective_rank(features)}
