"""A method as the training loop sees it, and the watch on collapse."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.recipe.stage import PolicyConfig
from pipeline.training.objective import Objective
from selfsup.components.method import Method, ViewKind, Views
from selfsup.stages.collapse import effective_rank, spread
from selfsup.stages.color_jitter import Colours
from selfsup.stages.stream import ViewBatch

WATCHED = 20
"""Steps between two looks at the features."""
SPREAD, RANK = "feature spread", "feature rank"
"""What the log calls the measures of `spread` and `effective_rank` beside the losses."""


def changed(kinds: Sequence[ViewKind], policy: PolicyConfig) -> list[ViewKind]:
    """A method's kinds of views with what the recipe says about them. Small views keep their shares of the area."""
    told = policy.model_dump(exclude_none=True)
    small = {name: value for name, value in told.items() if name != "area"}
    return [
        dataclasses.replace(kind, policy=dataclasses.replace(kind.policy, **(small if kind.is_small else told)))
        for kind in kinds
    ]


class StageObjective(Objective):
    """The sum of a method's losses on views whose colours it changes first."""

    def __init__(
        self, method: Method, kinds: Sequence[ViewKind], steps: int, memory_format: torch.memory_format
    ) -> None:
        super().__init__()
        self.method, self.steps, self.memory_format = method, steps, memory_format
        self.colours = nn.ModuleList(Colours(kind) for kind in kinds)

    def amounts(self, batch: ViewBatch) -> dict[str, float]:
        labelled = 0 if batch.classes is None else len(batch.classes)
        return {"images": len(batch.keys), "labelled": labelled}

    def forward(self, batch: ViewBatch, shares: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        unlabelled = [self._shown(colours, view) for colours, view in zip(self.colours, batch.unlabelled, strict=True)]
        labelled = None if batch.labelled is None else self._shown(self.colours[0], batch.labelled)
        views = Views(unlabelled, batch.index, labelled, batch.classes, batch.step, self.steps, batch.epoch)
        losses = {name: shares[self._over(name)] * loss for name, loss in self.method.losses(views).items()}
        told = {name: loss.detach() for name, loss in losses.items()}
        total = torch.stack(list(losses.values())).sum()
        if batch.step % WATCHED == 0 and len(batch.keys) > 1 and bool(total.isfinite()):
            told |= {name: shares["images"] * found for name, found in self._watch(unlabelled[0]).items()}
        return total, told

    def _over(self, loss: str) -> str:
        """What a loss is a mean over."""
        labels = self.method.labels
        return "labelled" if labels is not None and loss == labels.method else "images"

    def _shown(self, colours: nn.Module, images: Tensor) -> Tensor:
        shown: Tensor = colours(images).contiguous(memory_format=self.memory_format)
        return shown

    @torch.no_grad()
    def _watch(self, images: Tensor) -> dict[str, Tensor]:
        """How far apart features are, by the backbone as it would be used."""
        backbone = self.method.backbone.eval()
        features = backbone(images)
        backbone.train(self.training)
        return {SPREAD: spread(features), RANK: effective_rank(features)}
