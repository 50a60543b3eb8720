"""MAE: encode the visible patches of an image and reconstruct the masked ones (He et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.backbone import Backbone
from pipeline.models.readout import norm_tokens
from pipeline.recipe.stage import SCRATCH
from selfsup.components.config import MethodConfig, ScaledRate
from selfsup.components.losses import masked_reconstruction
from selfsup.components.method import Family, Method, Policy, StageSetting, ViewKind, Views

POLICY = Policy(area=(0.2, 1.0), jitter=0, grayscale=0, blur=0)
HEAD_WIDTH = 32
"""Channels per attention head of the decoder."""


class Config(MethodConfig):
    """MAE; the schedule is the paper's (table 8)."""

    method: Literal["mae"] = "mae"
    lr: float = Field(default_factory=ScaledRate(1.5e-4), gt=0)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that are masked."""
    width: int = Field(default=512, ge=HEAD_WIDTH, multiple_of=HEAD_WIDTH)
    """Width of the decoder."""
    depth: int = Field(default=8, ge=1)
    """Blocks of the decoder."""

    def build(self, backbone: Backbone, setting: StageSetting) -> Method:
        return MAE(self, backbone, setting)


class MAE(Method):
    """A vision transformer that encodes the visible patches, and a narrower one that decodes all of them.

    From scratch, the positions of the encoder are sines and cosines, and stay so, as those of the decoder; a backbone
    that comes with learned positions keeps and trains them. Raises ConfigError unless the backbone is a plain vision
    transformer whose patches divide the image.
    """

    decoder_pos_embed: Tensor
    family: ClassVar[Family] = "masked"
    compares_images: ClassVar[bool] = False

    def __init__(self, config: Config, backbone: Backbone, setting: StageSetting) -> None:
        super().__init__(backbone, None)
        if not isinstance(backbone.model, VisionTransformer) or not isinstance(backbone.model.patch_embed, PatchEmbed):
            raise ConfigError(
                f"method 'mae' masks patches of a plain vision transformer, which {backbone.name!r} is not: take "
                "vit_tiny_patch16_224, vit_small_patch16_224 or another one, or another method."
            )
        self.config, self.size = config, setting.size
        self.patch_size: int = backbone.model.patch_embed.patch_size[0]
        if setting.size % self.patch_size:
            raise ConfigError(f"image_size {setting.size} is not a multiple of the patch size ({self.patch_size}).")
        patches = (setting.size // self.patch_size) ** 2
        if count_visible(patches, config.mask_ratio) == patches:
            raise ConfigError(
                f"mask_ratio {config.mask_ratio:g} of {patches} patches of {self.patch_size} pixels masks none: "
                f"set image_size (now {setting.size}) to {2 * self.patch_size} or more, or a larger mask_ratio."
            )
        self.decoder_embed = nn.Linear(backbone.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(config.width).normal_(std=0.02))
        heads = config.width // HEAD_WIDTH
        self.decoder_blocks = nn.Sequential(*(Block(config.width, heads, qkv_bias=True) for _ in range(config.depth)))
        self.decoder_norm = nn.LayerNorm(config.width)
        self.decoder_pred = nn.Linear(config.width, self.patch_size**2 * backbone.image_channels)
        grid = setting.size // self.patch_size
        positions = build_sincos2d_pos_embed([grid, grid], config.width)
        self.register_buffer("decoder_pos_embed", positions, persistent=False)
        if config.start == SCRATCH and backbone.model.pos_embed is not None:
            _fix_positions(backbone.model.pos_embed, build_sincos2d_pos_embed([grid, grid], backbone.width))

    def view_kinds(self) -> Sequence[ViewKind]:
        return [ViewKind(self.size, POLICY)]

    def losses(self, views: Views) -> dict[str, Tensor]:
        [images] = views.unlabelled
        normalized = self.backbone.normalize(images)
        prediction, masked = self._reconstruct(normalized)
        return {"mae": masked_reconstruction(prediction, patchify(normalized, self.patch_size), masked)}

    def _reconstruct(self, normalized: Tensor) -> tuple[Tensor, Tensor]:
        """Predict all N patches of P values (B, N, P), and return which of them were masked (B, N) bool."""
        model: Any = self.backbone.model
        tokens = model._pos_embed(model.patch_embed(normalized))
        first = model.num_prefix_tokens
        visible_tokens, order = random_masking(tokens[:, first:], self.config.mask_ratio)
        latent = model.norm_pre(torch.cat([tokens[:, :first], visible_tokens], dim=1))
        latent = self.decoder_embed(norm_tokens(model, model.norm(model.blocks(latent))))
        visible = latent.shape[1] - first
        masked = self.mask_token.to(latent.dtype).expand(len(latent), order.shape[1] - visible, -1)
        shuffled = torch.cat([latent[:, first:], masked], dim=1)
        restore = order.argsort(dim=1)
        patches = shuffled.gather(1, restore[:, :, None].expand_as(shuffled)) + self.decoder_pos_embed.to(latent.dtype)
        decoded = self.decoder_norm(self.decoder_blocks(torch.cat([latent[:, :first], patches], dim=1)))
        return self.decoder_pred(decoded[:, first:]), restore >= visible


def _fix_positions(embedding: nn.Parameter, positions: Tensor) -> None:
    """Set position embeddings (1, P + N, D) to the fixed ones of N patches, zero for P class tokens; freeze them."""
    with torch.no_grad():
        embedding.zero_()
        embedding[0, -len(positions) :] = positions.to(embedding)
    embedding.requires_grad_(False)


def count_visible(count: int, ratio: float) -> int:
    """Return how many of `count` patches stay visible if a `ratio` is masked: at least 1."""
    return max(1, int(count * (1 - ratio) + 1e-6))  # or 10 (1 - 0.9) is 0


def random_masking(tokens: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Mask a `ratio` of each image's tokens (B, N, D), drawn at random; at least one stays visible.

    Returns the visible tokens (B, V, D), V = N (1 - ratio) rounded down, and a permutation (B, N) of all positions,
    whose first V entries are the visible ones.
    """
    count = tokens.shape[1]
    visible_count = count_visible(count, ratio)
    order = torch.rand(tokens.shape[:2], device=tokens.device).argsort(dim=1)
    visible = order[:, :visible_count, None].expand(-1, -1, tokens.shape[2])
    return tokens.gather(1, visible), order


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, C, S, S) into patches of side p, row by row: (B, (S / p)^2, p^2 C)."""
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_size * patch_size * channels)
