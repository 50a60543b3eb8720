"""Pretexts: answer several questions about an image at once that need no label, as after which rotation it is shown, or
how strongly fixed filters respond to it (Albuquerque et al., arXiv 2003.13525).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.models.backbone import Backbone
from pipeline.recipe.base import Optimizer, UniqueItems
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views
from tasks.texture.filter_banks import build_bank
from tasks.texture.functions import Function, response_names

POLICY = Policy(area=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0, blur=0)
ROTATIONS = 4
GRID = 3
"""Tiles on a side of a jigsaw."""
WAVELENGTHS, ORIENTATIONS = (4.0, 8.0), 4
"""Of Gabor filters; as many directions have histograms of gradients."""


def tile_orders(count: int) -> list[list[int]]:
    """Return orders of the tiles that differ much: of random ones, always the one farthest from those before it.

    The distance is the number of places with another tile (Noroozi and Favaro, ECCV 2016).
    """
    rng = np.random.default_rng(0)
    candidates = rng.permuted(np.tile(np.arange(GRID**2), (1000, 1)), axis=1)
    chosen = [np.arange(GRID**2)]
    nearest = np.full(len(candidates), GRID**2)
    while len(chosen) < count:
        nearest = np.minimum(nearest, (candidates != chosen[-1]).sum(axis=1))
        chosen.append(candidates[int(nearest.argmax())])
    return [order.tolist() for order in chosen]


ORDERS = tile_orders(30)
"""Orders of a jigsaw's tiles, as many as in JiGen; the first one is the image as it is."""
Pretext = Literal["rotation", "jigsaw", Function]


class Config(MethodConfig):
    """Pretexts; the schedule is RotNet's for CIFAR-10."""

    method: Literal["pretext"] = "pretext"
    optimizer: Optimizer = "sgd"
    lr: float = Field(default_factory=ScaledRate(0.1, batch=128), gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    nesterov: bool = True
    decay: Literal["matrices", "all"] = "all"
    warmup: float = Field(default=0, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    pretexts: Annotated[list[Pretext], UniqueItems] = Field(default=["rotation", "gabor"], min_length=1)
    """What is asked: `rotation`, by how many quarter turns (RotNet, Gidaris et al., ICLR 2018); `jigsaw`, in which of
    30 orders its nine tiles are (JiGen, Carlucci et al., CVPR 2019); and the responses of a function of the image, as
    an analytic teacher has them."""
    weights: dict[Pretext, Annotated[float, Field(gt=0)]] = Field(default={})
    """Weight of a pretext's loss; 1 if not given."""

    @model_validator(mode="after")
    def _weights_are_of_pretexts(self) -> Config:
        for name in self.weights:
            if name not in self.pretexts:
                raise ValueError(f"weights names {name!r}, and pretexts are {', '.join(self.pretexts)}")
        return self

    @property
    def needs_pictures(self) -> bool:
        """True if it asks for responses of functions, which are of colors and of gray."""
        return bool(set(self.pretexts) - {"rotation", "jigsaw"})

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return Pretexts(self, backbone, setting)


class Pretexts(Method):
    """A linear head for each pretext: on the vector for rotation and jigsaw, on the last map for responses.

    `rotation` turns images, and responses are those of the turned ones; `jigsaw` shuffles the same images upright.
    """

    family: ClassVar[Family] = "pretext"
    compares_images: ClassVar[bool] = False
    orders: Tensor

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, config.labels)
        self.config, self.size = config, setting.size
        self.asked = {name: config.weights.get(name, 1.0) for name in config.pretexts}
        self.heads, self.banks = nn.ModuleDict(), nn.ModuleDict()
        for name in config.pretexts:
            match name:
                case "rotation":
                    self.heads[name] = nn.Linear(backbone.width, ROTATIONS)
                case "jigsaw":
                    self.heads[name] = nn.Linear(backbone.width, len(ORDERS))
                case _:
                    self.banks[name] = build_bank(name, WAVELENGTHS, ORIENTATIONS)
                    channels = len(response_names(name, WAVELENGTHS, ORIENTATIONS))
                    self.heads[name] = nn.Conv2d(backbone.channels[-1], channels, 1)
        self.register_buffer("orders", torch.tensor(ORDERS), persistent=False)

    def view_kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, POLICY)]

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Return a loss by pretext: cross entropies, and mean absolute errors of responses."""
        [images] = views.unlabelled
        turns, order = (
            torch.randint(count, (len(images),), device=images.device) for count in (ROTATIONS, len(ORDERS))
        )
        turned = rotate(images, turns) if "rotation" in self.asked else images
        shown = [turned] if self.asked.keys() - {"jigsaw"} else []
        shown += [shuffle_tiles(images, self.orders[order])] if "jigsaw" in self.asked else []
        vectors, maps = self.backbone.readout(torch.cat(shown))
        found = {name: self._response_loss(name, turned, maps[-1][: len(images)]) for name in self.banks}
        if "rotation" in self.asked:
            found["rotation"] = F.cross_entropy(self.heads["rotation"](vectors[: len(images)]).float(), turns)
        if "jigsaw" in self.asked:
            found["jigsaw"] = F.cross_entropy(self.heads["jigsaw"](vectors[-len(images) :]).float(), order)
        return {name: weight * found[name] for name, weight in self.asked.items()}

    def _response_loss(self, name: str, images: Tensor, maps: Tensor) -> Tensor:
        """Return the mean absolute error of the responses of images in [0, 1], in cells of the map (B, C, h, w)."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            responses = F.adaptive_avg_pool2d(self.banks[name](images.float() * 255), (maps.shape[-2], maps.shape[-1]))
        return (self.heads[name](maps).float().sigmoid() - responses).abs().mean()


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each of the square images (B, C, S, S) by a number of quarter turns, int64 (B,), counter-clockwise."""
    turned = torch.stack([images.rot90(number, (2, 3)) for number in range(ROTATIONS)])
    return turned[turns, torch.arange(len(images), device=images.device)]


def shuffle_tiles(images: Tensor, orders: Tensor) -> Tensor:
    """Shuffle the 3 x 3 tiles of images (B, C, S, S): place n, in rows, gets the tile `orders[:, n]`, int64 (B, 9).

    Of a side that 3 does not divide, the last pixels are left out first, and mirrored ones added afterwards.
    """
    tile, missing = divmod(images.shape[-1], GRID)
    whole = images[..., : GRID * tile, : GRID * tile]
    tiles = whole.unflatten(3, (GRID, tile)).unflatten(2, (GRID, tile)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    shuffled = tiles[torch.arange(len(images), device=images.device)[:, None], orders]
    rows = shuffled.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 4, 2, 5)
    return F.pad(rows.flatten(4, 5).flatten(2, 3), (0, missing, 0, missing), mode="reflect")
