"""Base class of the self-supervised methods: networks that turn views of images into losses."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.models.backbone import Backbone
from pipeline.recipe.stage import LabelledConfig
from pipeline.training.collectives import Collectives
from selfsup.components.losses import suncet, supcon

if TYPE_CHECKING:
    from tasks.frozen_teacher import FrozenTeacher  # a recipe with stages is read without timm

Family = Literal["contrastive", "self-distillation", "clustering", "masked", "distillation", "pretext"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """Augmentation of a kind of view; the defaults are SimCLR's: `Policy(area=(0.2, 1.0), hue=0.1)`.

    `area`: smallest and largest share of the image that the crop covers. `flip`, `jitter`, `grayscale`, `blur` and
    `solarize` are probabilities; the others how far jitter goes, as in torchvision's `ColorJitter`.
    """

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
    """A kind of view, of which every image gets one: its side in pixels and its augmentation."""

    size: int
    policy: Policy
    is_local: bool = False
    """It keeps its `policy.area` whatever a recipe says."""
    is_plain: bool = False
    """It keeps its whole policy whatever a recipe says: a teacher sees it, or what is told of it is learned."""


class Position(NamedTuple):
    """The point that a stage has reached: `step` of `steps`, from 0, after `epoch` complete passes over its images."""

    step: int
    steps: int
    epoch: int


@dataclasses.dataclass(frozen=True)
class Views:
    """A batch as a method gets it: augmented views on the device, float32 in [0, 1]; uint8 before their colors change.

    `keys` of B images, their positions in the set `index` (B,) int64, and their views `unlabelled` (B, 3, S, S), one
    tensor for each of `Method.view_kinds`. `labelled` (N, 3, S, S): views of labelled images, of the first kind, and
    `classes` (N,) int64, their class numbers; None where there are none, N = 0 where other processes alone have some.
    `step`, `steps`, `epoch`: see `Position`.
    """

    keys: list[str]
    unlabelled: list[Tensor]
    index: Tensor
    labelled: Tensor | None
    classes: Tensor | None
    step: int
    steps: int
    epoch: int

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1)."""
        return self.step / self.steps


class StageSetting(NamedTuple):
    """The stage that a method is built for."""

    size: int
    """Side of global views, pixels."""
    images: int
    """Images in the set."""
    batch: int
    """Images in a step."""
    classes: Tensor | None = None
    """The class number (images,) int64 of every image, -1 if unknown, for methods that learn from classes."""
    class_names: tuple[str, ...] = ()
    """The classes of the labelled images that are drawn beside the others; none without."""
    teacher: FrozenTeacher | None = None
    """Of a method that learns from a teacher; None before there is one, when a recipe is checked."""


class Method(nn.Module, ABC):
    """A self-supervised method; `losses` of SimCLR, for example, without labels:

        z_i, z_j = forward_concat(self.head, forward_concat(self.backbone, views.unlabelled))
        return {"simclr": nt_xent(z_i, z_j, temperature=0.1)}

    Momentum encoders, queues and the like have to be parameters without gradient and buffers: they are saved with the
    training state, so that an interrupted training resumes exactly.

    Several processes see a part of each batch each. What compares images compares them with those of all processes,
    which `collectives` gathers; queues and banks take in the images of all, the same in every process.
    """

    family: ClassVar[Family]
    compares_images: ClassVar[bool] = True
    """The loss compares images of the whole batch, so gradient accumulation is refused, and processes exchange them in
    each pass. If not, a pass waits for no other process, and `collectives` give what this one has."""

    idempotent_buffers: ClassVar[frozenset[str]] = frozenset()
    """Buffers that a second pass on the same images leaves as the first one did. All others are copied before each step
    on a GPU, to be restored if memory runs out."""

    def __init__(self, backbone: Backbone, labels: LabelledConfig | None, own_loss: str | None = None) -> None:
        """`own_loss`: `labelled_loss` of the configuration, for a method with a loss of its own for labelled images."""
        super().__init__()
        self.backbone, self.labels, self.own_loss = backbone, labels, own_loss
        self.collectives = Collectives()

    @property
    def communicates(self) -> bool:
        """True if its passes exchange images with those of other processes: all of them, or the labelled ones."""
        return self.compares_images or self.labels is not None

    @property
    def labelled_loss(self) -> str | None:
        """Name of the loss that is a mean over the labelled images; None without one."""
        return (self.own_loss or self.labels.method) if self.labels else None

    @abstractmethod
    def view_kinds(self) -> Sequence[ViewKind]:
        """Return the kinds of views; every image gets one view of each kind: `[ViewKind(self.size, POLICY)] * 2`."""

    def initialize(self, batches: Iterable[tuple[Tensor, list[Tensor]]]) -> None:
        """See every image once before the first step, in train mode: pairs of `Views.index` and `Views.unlabelled`.

        Override it only if needed: it costs a pass over all images.
        """

    def other_backbones(self) -> Mapping[str, Backbone]:
        """Return the backbones, beside the stage's own, that are saved as well, by the name of their folder."""
        return {}

    @abstractmethod
    def losses(self, views: Views) -> dict[str, Tensor]:
        """Return scalar losses by name, of which the sum is minimised.

        They are means over the unlabelled images, except for `labelled_loss`.
        """

    def labelled_losses(self, embeddings: Tensor, views: Views) -> dict[str, Tensor]:
        """Return the stage's SuNCEt or SupCon loss of the labelled images' embeddings (N, D); {} without labels."""
        if self.labels is None or views.classes is None:
            return {}
        z, own = self.collectives.all_gather(embeddings.float())
        classes = self.collectives.all_gather(views.classes).rows
        if self.labels.method == "supcon":
            return {"supcon": supcon(z, classes, self.labels.temperature, own)}
        return {"suncet": suncet(z, classes, self.labels.temperature, self.labels.smoothing, own)}


def forward_concat(module: Callable[[Tensor], Tensor], batches: Sequence[Tensor | None]) -> list[Tensor]:
    """Call the module on several batches, those of one shape in one pass, and return the outputs in order.

    One pass, so that batch norms see all of them. A batch that is None is left out.
    """
    present = [batch for batch in batches if batch is not None]
    outputs: dict[int, Tensor] = {}
    for shape in dict.fromkeys(batch.shape[1:] for batch in present):
        numbers = [number for number, batch in enumerate(present) if batch.shape[1:] == shape]
        output = module(torch.cat([present[number] for number in numbers]))
        outputs |= dict(zip(numbers, output.split([len(present[number]) for number in numbers]), strict=True))
    return [outputs[number] for number in range(len(present))]
