"""Prompts of zero-shot models: phrases as the embeddings or token ids that images are compared with.

They are made once, with a teacher. Then neither the tokenizer nor, but for Grounding DINO, the text is needed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError
from teachers.models import transformers_models
from teachers.models.transformers_models import load_part

DELIMITERS = ".?"
"""What ends a phrase for Grounding DINO."""
NO_CLASS = -1
"""The class of tokens that are no part of a phrase."""
BATCH = 256
"""Texts that are encoded at once."""


class ModelType(NamedTuple):
    """A type of models, the `model_type` of their config.json: how they are loaded and told their classes."""

    part: str
    """The library's class for it."""
    tasks: tuple[str, ...]
    example: str
    """A published model."""
    padding: bool | str = True
    """How its tokenizer pads texts: to the longest one, or always to the model's length (max_length)."""
    lower: bool = False
    """True if it was trained on lower case, which its tokenizer may not see to."""
    joined: bool = False
    """True if it reads phrases as one text, together with each image."""


MODEL_TYPES = {
    "clip": ModelType("CLIPModel", ("classification",), "openai/clip-vit-large-patch14"),
    "siglip": ModelType(
        "SiglipModel", ("classification", "multilabel"), "google/siglip-base-patch16-224", "max_length", lower=True
    ),
    "grounding-dino": ModelType(
        "GroundingDinoForObjectDetection", ("detection",), "IDEA-Research/grounding-dino-tiny", lower=True, joined=True
    ),
    "owlv2": ModelType("Owlv2ForObjectDetection", ("detection",), "google/owlv2-base-patch16", "max_length"),
    "clipseg": ModelType("CLIPSegForImageSegmentation", ("segmentation",), "CIDAS/clipseg-rd64-refined"),
}


def find_type(config: Any, about: Mapping[str, Any]) -> ModelType:
    """Return the type of the model with this configuration. Raises ConfigError if it can't do the task with words."""
    task, model_type = about["task"], str(config.model_type)
    found = MODEL_TYPES.get(model_type)
    if found is None or task not in found.tasks:
        fitting = [f"{name} (hub:{each.example})" for name, each in MODEL_TYPES.items() if task in each.tasks]
        raise ConfigError(
            f"weights {about['weights']!r} is a model of type {model_type!r}, which does no {task} by prompts here; "
            f"models of type {' or '.join(fitting)} do."
        )
    return found


def load_config(about: Mapping[str, Any]) -> Any:
    """Load the configuration of a teacher's model. Raises ConfigError if there is none, or it is not for the task."""
    config = transformers_models.load_config(about["weights"], about["task"])
    find_type(config, about)
    return config


def load_tokenizer(about: Mapping[str, Any]) -> Any:
    """Load the tokenizer of a teacher's model. Raises ConfigError as `load_config` does, or if there is none."""
    load_config(about)
    return load_part(about["weights"], "AutoTokenizer", about["task"])


def check_prompts(tokenizer: Any, about: Mapping[str, Any]) -> None:
    """Raise ConfigError for a phrase that a teacher's tokenizer does not know, or that is too long for its model."""
    config = load_config(about)
    reads = find_type(config, about)
    limit = config.max_text_len - 1 if reads.joined else config.text_config.max_position_embeddings
    no_words = set(tokenizer.all_special_ids)
    for phrase in about["phrases"]:
        if reads.joined and set(DELIMITERS) & set(phrase):
            raise ConfigError(f"prompts: {phrase!r} has a '.' or '?', which ends a phrase here: leave it out.")
        if no_words.issuperset(tokenizer(_case(phrase, reads))["input_ids"]):
            raise ConfigError(
                f"prompts: the tokenizer of {about['weights']!r} knows no word of {phrase!r}: say it in other words, "
                "or give a folder with the model's own tokenizer."
            )
    for text in _texts(about, reads):
        length = len(tokenizer(text)["input_ids"])
        if length > limit:
            raise ConfigError(f"prompts: {text!r} has {length} tokens, and the model reads {limit}: say it shorter.")


def encode_prompts(model: Any, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a teacher's prompts as its model reads them.

    `embeddings` (P, D) of the P phrases, float32. Of Grounding DINO, which mixes text and image, `ids.N` and
    `classes.N`, both int64 (L,): the token ids of text N, and the class of each token, or NO_CLASS.

    Raises ConfigError as `check_prompts` does, or if there is no tokenizer.
    """
    tokenizer = load_tokenizer(about)
    check_prompts(tokenizer, about)
    if not find_type(model.config, about).joined:
        return {"embeddings": embed(model, tokenizer, about)}
    tensors = {}
    for number, (ids, classes) in enumerate(join_phrases(tokenizer, about, model.config.max_text_len)):
        tensors[f"ids.{number}"], tensors[f"classes.{number}"] = torch.tensor(ids), torch.tensor(classes)
    return tensors


@torch.inference_mode()
def embed(model: Any, tokenizer: Any, about: Mapping[str, Any]) -> Tensor:
    """Return embeddings (P, D) of the P phrases; with templates, the mean of unit vectors, again of unit length."""
    texts = list(_texts(about, find_type(model.config, about)))
    parts = [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]
    embeddings = torch.cat([_embed_texts(model, tokenizer, part, about) for part in parts])
    if about["task"] == "segmentation":  # CLIPSeg reads their length as well
        return embeddings
    by_phrase = F.normalize(embeddings, dim=-1).unflatten(0, (len(about["phrases"]), -1))
    return F.normalize(by_phrase.mean(dim=1), dim=-1)


def _embed_texts(model: Any, tokenizer: Any, texts: Sequence[str], about: Mapping[str, Any]) -> Tensor:
    reads, length = find_type(model.config, about), model.config.text_config.max_position_embeddings
    encoded = tokenizer(texts, padding=reads.padding, max_length=length, truncation=True, return_tensors="pt")
    asked = {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}
    return pooled(model.base_model.get_text_features(**asked)).float()


def pooled(features: Any) -> Tensor:
    """Return the vectors in what a model of the library returns as features."""
    vectors: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return vectors


def join_phrases(tokenizer: Any, about: Mapping[str, Any], limit: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield token ids of phrases that are joined as "cat. dog.", at most `limit` of them, and each token's class."""
    begin, stop, end = tokenizer.cls_token_id, tokenizer.convert_tokens_to_ids("."), tokenizer.sep_token_id
    ids, classes = [begin], [NO_CLASS]
    for phrase, class_number in zip(about["phrases"], about["class_of_phrase"], strict=True):
        words = tokenizer(phrase.lower(), add_special_tokens=False)["input_ids"]
        if len(ids) + len(words) + 2 > limit:
            yield [*ids, end], [*classes, NO_CLASS]
            ids, classes = [begin], [NO_CLASS]
        ids, classes = [*ids, *words, stop], [*classes, *[class_number] * len(words), NO_CLASS]
    yield [*ids, end], [*classes, NO_CLASS]


def _texts(about: Mapping[str, Any], reads: ModelType) -> Iterator[str]:
    """Yield each phrase in each of its templates."""
    for phrase in about["phrases"]:
        yield from (_case(template.replace("{}", phrase), reads) for template in about["templates"])


def _case(text: str, reads: ModelType) -> str:
    return text.lower() if reads.lower else text
