"""MAE: a vision transformer sees a quarter of an image's patches and paints the others (He et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.encoder import Encoder
from selfsup.components.config import MethodConfig
from selfsup.components.losses import masked_reconstruction
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views

POLICY = Policy(area=(0.2, 1.0), jitter=0, grayscale=0, blur=0)
HEAD_WIDTH = 32


class Config(MethodConfig):
    """MAE."""

    method: Literal["mae"] = "mae"
    masked: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that are hidden."""
    width: int = Field(default=512, ge=HEAD_WIDTH, multiple_of=HEAD_WIDTH)
    """Of the decoder."""
    depth: int = Field(default=8, ge=1)
    """Blocks of the decoder."""

    def build(self, backbone: Encoder, setting: StageSetting) -> Method:
        """The method, its decoder fresh. ConfigError unless the backbone is a plain vision transformer."""
        return MAE(self, backbone, setting)


class MAE(Method):
    """The transformer as encoder of what is visible, and a narrower one that decodes all."""

    places: Tensor
    family: ClassVar[Family] = "masked"
    compares: ClassVar[bool] = False

    def __init__(self, config: Config, backbone: Encoder, setting: StageSetting) -> None:
        super().__init__(backbone, None)
        if not isinstance(backbone.model, VisionTransformer):
            raise ConfigError(
                f"method 'mae' hides patches from a plain vision transformer, which {backbone.name!r} is not: take "
                "vit_tiny_patch16_224, vit_small_patch16_224 or another one, or another method."
            )
        self.config, self.size = config, setting.size
        self.side: int = backbone.model.patch_embed.patch_size[0]
        if setting.size % self.side:
            raise ConfigError(f"image_size {setting.size} is no multiple of the backbone's patches ({self.side}).")
        self.embed = nn.Linear(backbone.width, config.width)
        self.hidden = nn.Parameter(torch.zeros(config.width).normal_(std=0.02))
        heads = config.width // HEAD_WIDTH
        self.blocks = nn.Sequential(*(Block(config.width, heads, qkv_bias=True) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width)
        self.paint = nn.Linear(config.width, self.side**2 * 3)
        grid = setting.size // self.side
        self.register_buffer("places", build_sincos2d_pos_embed([grid, grid], config.width), persistent=False)

    def kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, POLICY)]

    def losses(self, views: Views) -> dict[str, Tensor]:
        [images] = views.unlabelled
        prediction, masked = self._paint(images)
        return {"mae": masked_reconstruction(prediction, to_patches(images, self.side), masked)}

    def _paint(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What all patches (B, N, P) look like to it, and which were hidden (B, N)."""
        model: Any = self.backbone.model
        tokens = model._pos_embed(model.patch_embed(self.backbone.normalised(images)))
        first = model.num_prefix_tokens
        visible, order = hide(tokens[:, first:], self.config.masked)
        seen = model.norm_pre(torch.cat([tokens[:, :first], visible], dim=1))
        seen = self.embed(model.norm(model.blocks(seen)))[:, first:]
        count, missing = seen.shape[1], order.shape[1] - seen.shape[1]
        shuffled = torch.cat([seen, self.hidden.to(seen.dtype).expand(len(seen), missing, -1)], dim=1)
        back = order.argsort(dim=1)
        whole = shuffled.gather(1, back[:, :, None].expand_as(shuffled)) + self.places.to(seen.dtype)
        return self.paint(self.norm(self.blocks(whole))), back >= count


def hide(tokens: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, D) -> those that stay visible, (B, N - round(share N), D), drawn at random for each image, and a
    random order of all (B, N) whose beginning they are. One stays visible at least.
    """
    count = tokens.shape[1]
    left = max(1, count - round(share * count))
    order = torch.rand(tokens.shape[:2], device=tokens.device).argsort(dim=1)
    kept = order[:, :left, None].expand(-1, -1, tokens.shape[2])
    return tokens.gather(1, kept), order


def to_patches(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, S, S) -> their patches (B, (S / side)^2, side^2 3), row by row."""
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)
