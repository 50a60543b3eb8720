"""Tiny zero-shot models with random weights and word-level tokenizers, made without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
tokenizers: Any = pytest.importorskip("tokenizers", reason="transformers is not installed")

SHAPES = ("box", "cone", "cylinder", "pyramid", "sphere", "torus")
"""Classes of the generated world."""
WORDS = (
    *[
        "a",
        "the",
        "photo",
        "of",
        "this",
        "is",
        "close",
        "up",
        "-",
        "car",
        "van",
        "person",
        "pedestrian",
        "walking",
        "cat",
        "dog",
        "ball",
        "cube",
    ],
    *SHAPES,
)
BERT_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
"""Ids of BERT, which Grounding DINO counts on."""
BERT_SIZE = 1030
SIDE = 64
"""Pixels of the tiny models' images; of Grounding DINO's, which halves them often, twice as many."""
GAINS = {"owlv2": 0.5}
"""Factors on weights, with which scores and boxes differ; 2 for other models."""
TASKS = {
    "clip": "classification",
    "siglip": "classification",
    "owlv2": "detection",
    "grounding-dino": "detection",
    "clipseg": "segmentation",
}
"""A task of each type of model."""


def bert_tokenizer() -> Any:
    """Return a tokenizer with BERT's ids of special tokens."""
    vocabulary = {**{word: 200 + number for number, word in enumerate(WORDS)}, **BERT_IDS}
    return _tokenizer(vocabulary, "[CLS]", "[SEP]", cls_token="[CLS]", sep_token="[SEP]")


def clip_tokenizer(length: int) -> Any:
    """Return a tokenizer whose last id ends a text, for models that read `length` tokens."""
    words = ["[PAD]", "[UNK]", ".", *WORDS, "[BOS]", "[EOS]"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return _tokenizer(vocabulary, "[BOS]", "[EOS]", bos_token="[BOS]", eos_token="[EOS]", model_max_length=length)


def _tokenizer(vocabulary: dict[str, int], first: str, last: str, **more: Any) -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(name, vocabulary[name]) for name in (first, last)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", **more)


def tower(**more: Any) -> dict[str, Any]:
    return {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **more}


def text_config(tokenizer: Any, length: int) -> dict[str, Any]:
    size, ids = len(tokenizer), {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return tower(vocab_size=size, max_position_embeddings=length, pad_token_id=0, projection_dim=16, **ids)


VISION = tower(image_size=SIDE, patch_size=8, projection_dim=16)


def clip() -> tuple[Any, Any, Any]:
    """Return a model, its image processor and its tokenizer."""
    tokenizer = clip_tokenizer(77)
    config = transformers.CLIPConfig(text_config=text_config(tokenizer, 77), vision_config=VISION, projection_dim=16)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return transformers.CLIPModel(config), transformers.CLIPImageProcessor(**size), tokenizer


def siglip() -> tuple[Any, Any, Any]:
    """Return a model, its image processor and its tokenizer."""
    tokenizer = clip_tokenizer(64)
    config = transformers.SiglipConfig(text_config=text_config(tokenizer, 64), vision_config=VISION)
    return transformers.SiglipModel(config), transformers.SiglipImageProcessor(size=square()), tokenizer


def owlv2() -> tuple[Any, Any, Any]:
    """Return a model, its image processor and its tokenizer."""
    tokenizer = clip_tokenizer(16)
    config = transformers.Owlv2Config(text_config=text_config(tokenizer, 16), vision_config=VISION, projection_dim=16)
    return transformers.Owlv2ForObjectDetection(config), transformers.Owlv2ImageProcessor(size=square()), tokenizer


def clipseg() -> tuple[Any, Any, Any]:
    """Return a model, its image processor and its tokenizer."""
    tokenizer = clip_tokenizer(77)
    config = transformers.CLIPSegConfig(
        text_config=text_config(tokenizer, 77),
        vision_config=VISION,
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    return transformers.CLIPSegForImageSegmentation(config), transformers.ViTImageProcessor(size=square()), tokenizer


def grounding_dino() -> tuple[Any, Any, Any]:
    """Return a model, its image processor and its tokenizer."""
    swin = transformers.SwinConfig(
        image_size=2 * SIDE, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2, out_indices=[2, 3, 4]
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin,
        text_config=transformers.BertConfig(**tower(vocab_size=BERT_SIZE)),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=10,
        max_text_len=32,
    )
    processor = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 2 * SIDE, "longest_edge": 3 * SIDE})
    return transformers.GroundingDinoForObjectDetection(config), processor, bert_tokenizer()


def square() -> dict[str, int]:
    return {"height": SIDE, "width": SIDE}


MAKERS = {"clip": clip, "siglip": siglip, "owlv2": owlv2, "grounding-dino": grounding_dino, "clipseg": clipseg}


def random_model(name: str) -> tuple[Any, Any, Any]:
    """Return a tiny model of a type with spread scores, its image processor and its tokenizer."""
    torch.manual_seed(0)
    model, processor, tokenizer = MAKERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(GAINS.get(name, 2)).add_(torch.randn_like(parameter), alpha=0.1)  # some are 0 at first
    return model.eval(), processor, tokenizer


def save(folder: Path, model: Any, processor: Any, tokenizer: Any) -> Path:
    """Save a model as publishers do; return its folder."""
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder / "published")
    return folder / "published"
