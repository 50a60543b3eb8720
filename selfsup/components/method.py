"""What a self-supervised method is: a network that turns views of images into losses."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from pipeline.recipe.stage import LabelledConfig
from selfsup.components.losses import suncet, supcon

Family = Literal["contrastive", "self-distillation", "clustering", "masked"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """How a kind of view is drawn: shares of the image's area, probabilities, and strengths of colour changes."""

    area: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grayscale: float = 0.2
    blur: float = 0.5
    solarize: float = 0.0


@dataclasses.dataclass(frozen=True)
class ViewKind:
    """A kind of view, of which each image has one: its side in pixels, how it is drawn, and whether it is small."""

    size: int
    policy: Policy
    is_small: bool = False


@dataclasses.dataclass(frozen=True)
class Views:
    """A batch as a method sees it.

    `unlabelled`: by `Method.kinds`, (B, 3, S, S) float32 in [0, 1]. `index` (B,): which image of the set each is.
    `labelled` (N, 3, S, S), `classes` (N,): views of labelled images, None where there are none. `step` of `steps`;
    `epoch`: how often all images were seen before.
    """

    unlabelled: list[Tensor]
    index: Tensor
    labelled: Tensor | None
    classes: Tensor | None
    step: int
    steps: int
    epoch: int

    @property
    def progress(self) -> float:
        """The share of the training that is behind, in [0, 1)."""
        return self.step / self.steps


class StageSetting(NamedTuple):
    """What a method is built for: the side of large views (pixels), the images of the set, and images in a step."""

    size: int
    images: int
    batch: int


class Method(nn.Module, ABC):
    """A method. Parts that move by an average of others, queues and the like are parameters without a gradient and
    buffers: they are on disk with the rest of a training's state, and a training goes on as if nothing had happened.
    """

    family: ClassVar[Family]
    compares: ClassVar[bool] = True
    """Whether its loss compares the images of a batch with each other, so that no part of a batch will do for it."""

    def __init__(self, backbone: Encoder, labels: LabelledConfig | None) -> None:
        super().__init__()
        self.backbone, self.labels = backbone, labels

    @abstractmethod
    def kinds(self) -> Sequence[ViewKind]:
        """The kinds of views that it wants of each image, one of each."""

    def begin(self, batches: Iterable[tuple[Tensor, list[Tensor]]]) -> None:
        """Before the first step: (which images, their views), every image once, for methods that need to see them."""

    @abstractmethod
    def losses(self, views: Views) -> dict[str, Tensor]:
        """Scalars to minimise, by name: their sum is the loss. Means over the images of the batch, but that over the
        labelled ones, which is called as its method.
        """

    def supervised(self, embeddings: Tensor, views: Views) -> dict[str, Tensor]:
        """The loss of labelled images, of which these are the embeddings (N, D); none where there are none."""
        if self.labels is None or views.classes is None:
            return {}
        loss = {"suncet": suncet, "supcon": supcon}[self.labels.method]
        return {self.labels.method: loss(embeddings, views.classes, self.labels.temperature)}


def forward_concat(module: Callable[[Tensor], Tensor], batches: Sequence[Tensor | None]) -> list[Tensor]:
    """What a module makes of several batches, those of one shape in one pass, so that batch norms see them all;
    nothing for None.
    """
    present = [batch for batch in batches if batch is not None]
    found: dict[int, Tensor] = {}
    for shape in dict.fromkeys(batch.shape[1:] for batch in present):
        alike = [place for place, batch in enumerate(present) if batch.shape[1:] == shape]
        made = module(torch.cat([present[place] for place in alike]))
        found |= dict(zip(alike, made.split([len(present[place]) for place in alike]), strict=True))
    return [found[place] for place in range(len(present))]
