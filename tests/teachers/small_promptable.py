"""Tiny promptable models, SAM and SAM 2, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

SIDE = 64
"""Pixels of the tiny models' images."""
WIDTH = 16
DECODER = {
    "hidden_size": WIDTH,
    "mlp_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "iou_head_depth": 2,
    "iou_head_hidden_dim": 16,
}
PROMPTS = {"hidden_size": WIDTH, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 8}


def sam() -> tuple[Any, Any]:
    """Return a model and its processor, which pads images."""
    vision = transformers.SamVisionConfig(
        hidden_size=16,
        output_channels=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=16,
        window_size=2,
        global_attn_indexes=[1],
        num_pos_feats=WIDTH // 2,
        mlp_dim=16,
    )
    config = transformers.SamConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER
    )
    images = transformers.SamImageProcessor(size={"longest_edge": SIDE}, pad_size=_square(SIDE))
    return transformers.SamModel(config), transformers.SamProcessor(images)


def sam2() -> tuple[Any, Any]:
    """Return a model and its processor, which stretches images."""
    return transformers.Sam2Model(transformers.Sam2Config(**_sam2_parts())), _sam2_processor()


def sam2_video() -> tuple[Any, Any]:
    """Return a model for videos, as SAM 2 is published, and the processor for its part for images."""
    memory = {
        "image_size": SIDE,
        "memory_attention_hidden_size": WIDTH,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 16,
        "memory_attention_rope_feat_sizes": [4, 4],
        "memory_encoder_hidden_size": WIDTH,
        "memory_encoder_output_channels": 8,
        "mask_downsampler_embed_dim": WIDTH,
        "memory_fuser_embed_dim": WIDTH,
        "memory_fuser_intermediate_dim": 16,
        "memory_fuser_num_layers": 1,
    }
    return transformers.Sam2VideoModel(transformers.Sam2VideoConfig(**_sam2_parts(), **memory)), _sam2_processor()


def _sam2_parts() -> dict[str, Any]:
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE, SIDE],
        window_positional_embedding_background_size=[2, 2],
        blocks_per_stage=[1, 2, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 2, 2, 2],
        global_attention_blocks=[2],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone.to_dict(),
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=WIDTH,
    )
    return {
        "vision_config": vision.to_dict(),
        "prompt_encoder_config": PROMPTS,
        "mask_decoder_config": DECODER,
    }


def _sam2_processor() -> Any:
    return transformers.Sam2Processor(transformers.Sam2ImageProcessor(size=_square(SIDE)))


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


MAKERS = {"sam": sam, "sam2": sam2, "sam2_video": sam2_video}


def random_promptable(name: str) -> tuple[Any, Any]:
    """Return a tiny model of a type whose masks depend on image and box, and its processor."""
    torch.manual_seed(0)
    model, processor = MAKERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3).add_(torch.randn_like(parameter), alpha=0.2)  # some are 0 at first
    return model.eval(), processor


def save_promptable(folder: Path, name: str) -> Path:
    """Save a tiny model as publishers do; return its folder."""
    for part in random_promptable(name):
        part.save_pretrained(folder / name)
    return folder / name
