"""Promptable models of Hugging Face transformers (SAM, Kirillov et al., ICCV 2023; SAM 2, Ravi et al., ICLR 2025) as
predictors of masks: their prompts are the boxes that another predictor finds in the same pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import PAD_COLOR, Placement
from pipeline.errors import ConfigError
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import LabelSpace
from pipeline.stores.rasters import linear_weights
from pipeline.stores.rle import Size, box_around, encode_mask
from tasks.masks.model import TaskModel as Masks
from tasks.prediction import Predictor, Preprocessing
from tasks.task import Prediction
from teachers.models import transformers_models
from teachers.models.torchvision_models import Adapter
from teachers.models.transformers_models import (
    IMAGES,
    describe_input,
    load_network,
    load_part,
    preprocessing_of,
)
from teachers.models.trunk import pool_features

TASK = "masks"
TYPES = ("sam", "sam2", "sam2_video")
"""The `model_type` in the config.json of models that are taken; of those of SAM 2 for videos, the part for images."""
EXAMPLES = "SAM (hub:facebook/sam-vit-base) or SAM 2 (hub:facebook/sam2.1-hiera-tiny)"
PART = "AutoModelForMaskGeneration"
"""The library's class of such models."""
BOXES_PER_PASS = 32
"""Boxes of an image that are decoded at once: memory does not grow with more of them."""
LARGEST = 60_000.0
"""Logits are kept within it, for float16."""


def load_config(weights: str) -> Any:
    """Load the configuration of a model. Raises ConfigError if there is none, or it takes no boxes."""
    config = transformers_models.load_config(weights, TASK)
    if config.model_type not in TYPES:
        raise ConfigError(
            f"weights {weights!r} are of a model of type {config.model_type!r}, which makes no masks of boxes here; "
            f"{EXAMPLES} does."
        )
    return config


def load_processor(weights: str) -> Any:
    """Load the image processor of a model. Raises ConfigError as `load_config` does, or if its images don't fit."""
    config, processor = load_config(weights), load_part(weights, IMAGES, TASK)
    made, taken = _side(processor), config.prompt_encoder_config.image_size
    if made != taken:
        raise ConfigError(
            f"the image processor of {weights!r} makes images of {made} pixels, and the model takes {taken}: give a "
            "folder whose preprocessor_config.json and config.json belong together."
        )
    return processor


def _side(processor: Any) -> int | None:
    """Return the side in pixels of the images that a processor makes."""
    size = dict(processor.size or {})
    return size.get("longest_edge") or size.get("height")


def fetch(weights: str) -> tuple[Any, Any]:
    """Load a model and its image processor. Raises ConfigError and DataError as `load_network` does."""
    processor = load_processor(weights)
    return load_network(weights, PART, TASK), processor


def describe(processor: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the teacher's `model.json`: its preprocessing, the processor's own, and its classes."""
    resize = "pad" if dict(processor.size).get("longest_edge") else "stretch"
    return {
        **about,
        "format": "promptable",
        "resize": resize,
        **describe_input(processor, {**about, "image_size": _side(processor)}),
    }


class ImageEmbedder(Adapter):
    """The image encoder of a promptable model: maps (B, D, h, w), of SAM 2 several, the finest first.

    Their means over space are the images' vectors.
    """

    def run(self, inputs: Tensor) -> list[Tensor]:
        model: Any = self.model
        maps = model.get_image_embeddings(inputs)
        return [maps] if isinstance(maps, Tensor) else list(maps)

    def forward_with_vector(self, images: Tensor) -> tuple[dict[str, Any], Tensor | None]:
        outputs = self(images)
        return outputs, pool_features(outputs[self.head])

    def decode(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Return the logits (N, h, w) of the masks of boxes (N, 4), in input pixels, of an image's maps (1, D, h, w).

        Coordinates need float32: not to be called under autocast.
        """
        model: Any = self.model
        if not len(boxes):
            return boxes.new_zeros(0, 1, 1)
        exact = [each.float() for each in maps]
        embedded = exact[0] if len(exact) == 1 else exact
        parts = [
            model(image_embeddings=embedded, input_boxes=part[None], multimask_output=False).pred_masks[0, :, 0]
            for part in boxes.split(BOXES_PER_PASS)
        ]
        return torch.cat(parts)


class BoxMasks(Masks):
    """The masks task for models that give each box logits (h, w) of the whole input.

    Args:
        padded_side: side in pixels of the input if images are padded in it; None if they are stretched.
    """

    def __init__(self, space: LabelSpace, padded_side: int | None) -> None:
        super().__init__(space)
        self.padded_side = padded_side

    def paste(self, masks: NDArray[Any], boxes: NDArray[np.float32], placement: Placement) -> Sequence[bytes | None]:
        """Return the run lengths, in the image, of the pixels with a positive logit; None where there is none."""
        columns, rows = (
            _upsampling(cells, valid, length, self.padded_side)
            for cells, valid, length in zip(masks.shape[:0:-1], placement.valid, placement.size, strict=True)
        )
        return [_paste(logits, rows, columns, placement.size) for logits in masks]


@functools.lru_cache(maxsize=16)
def _upsampling(cells: int, valid: int, length: int, padded_side: int | None) -> NDArray[np.float32]:
    """Return the weights (length, cells) of logits in the pixels of an image along an axis, as the library has them.

    Those of a padded input of `padded_side` pixels are first resized to it, and its valid part to the image.
    """
    if padded_side is None:
        return linear_weights(0, 1, cells, length).astype(np.float32)
    to_input = linear_weights(0, 1, cells, padded_side)[:valid].astype(np.float32)
    weights: NDArray[np.float32] = linear_weights(0, 1, valid, length).astype(np.float32) @ to_input
    return weights


def _paste(logits: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any], size: Size) -> bytes | None:
    """Return the run lengths of a mask; a pixel is in it only if a cell is that has a weight there."""
    if not (logits > 0).any():
        return None
    x0, y0, x1, y1 = box_around(logits > 0)
    y, x = np.flatnonzero(rows[:, y0:y1].any(axis=1)), np.flatnonzero(columns[:, x0:x1].any(axis=1))
    if not (len(y) and len(x)):  # in the padding alone
        return None
    mask = rows[y] @ logits.astype(np.float32) @ columns[x].T > 0
    return encode_mask(mask, (int(x[0]), int(y[0])), size) if mask.any() else None


class BoxPrompter(Predictor):
    """A promptable model that is given the boxes of another predictor.

    Args:
        network: the image encoder, and the decoder of boxes.
        task: the task that reads its masks.
        about: the teacher's `model.json`.
        prompter: finds the boxes, with one head, of detection or masks.
        prompter_id: JSON that identifies it.
    """

    def __init__(
        self, network: ImageEmbedder, task: BoxMasks, about: Mapping[str, Any], prompter: Predictor, prompter_id: Any
    ) -> None:
        super().__init__(network, {network.head: task}, preprocessing_of(about))
        self.embedder, self.prompter, self._prompter_id = network, prompter, prompter_id
        self._threshold, self._max_boxes = about["threshold"], about["max_boxes"]

    def setup(self, runtime: Runtime, model_id: Any) -> Predictor:
        self.prompter.setup(runtime, self._prompter_id)
        return super().setup(runtime, model_id)

    def _predict_batch(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], with_vectors: bool
    ) -> tuple[dict[str, Prediction], Tensor | None]:
        moved = self._to_device(images)
        prompts = self._find_boxes(moved, sizes)
        with self.compute.autocast():
            outputs, vectors = self.embedder.forward_with_vector(moved)
        head = self.embedder.head
        found = [
            self._add_masks([each[index : index + 1] for each in outputs[head]], prompt)
            for index, prompt in enumerate(prompts)
        ]
        return {head: {"images": found}}, vectors.float() if with_vectors and vectors is not None else None

    def _find_boxes(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Return `boxes` (N, 4) in input pixels, `scores` and `labels` of each image: those that become masks."""
        own, other = self.preprocessing, self.prompter.preprocessing
        [prediction] = self.prompter._predict_batch(resample(images, own, other, sizes), sizes, False)[0].values()
        found = []
        for image, size in zip(prediction["images"], sizes, strict=True):
            boxes, scores = image["boxes"].float(), image["scores"]
            best = scores.argsort(descending=True, stable=True)[: self._max_boxes]
            kept = best[scores[best] >= self._threshold]
            scale = boxes.new_tensor(own.valid_size(size) * 2) / boxes.new_tensor(other.valid_size(size) * 2)
            found.append({"boxes": boxes[kept] * scale, "scores": scores[kept], "labels": image["labels"][kept]})
        return found

    def _add_masks(self, maps: Sequence[Tensor], prompt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self.embedder.decode(maps, prompt["boxes"])
        # Without a positive logit there would be no object: keep a mask, with a score for which the label is refused.
        scores = torch.where(logits.isfinite().all(dim=(1, 2)), prompt["scores"], torch.nan)
        masks = logits.nan_to_num(nan=1.0).clamp(-LARGEST, LARGEST).half()
        return {**prompt, "scores": scores, "masks": masks}


def resample(images: Tensor, one: Preprocessing, other: Preprocessing, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return inputs (B, 3, S, S) uint8 that one preprocessing made as another one would have: (B, 3, T, T) uint8.

    `sizes`: (width, height) of the images, in pixels.
    """
    color = torch.tensor(PAD_COLOR, dtype=torch.uint8, device=images.device)
    made = color[:, None, None].repeat(len(images), 1, other.size, other.size)
    for image, size, into in zip(images, sizes, made, strict=True):
        (width, height), (to_width, to_height) = one.valid_size(size), other.valid_size(size)
        seen = image[None, :, :height, :width].float()
        sized = F.interpolate(seen, (to_height, to_width), mode="bilinear", antialias=True)
        into[:, :to_height, :to_width] = sized[0].round().clamp(0, 255)
    return made


def build_predictor(folder: Path, about: Mapping[str, Any], prompter: Predictor, prompter_id: Any) -> Predictor:
    """Build the predictor of the model in `folder`, which is given the boxes of `prompter`."""
    model = load_network(str(folder), PART, TASK)
    network = ImageEmbedder(model, about["head"], (about["mean"], about["std"]))
    space = LabelSpace(TASK, tuple(about["classes"]))
    task = BoxMasks(space, about["size"] if about["resize"] == "pad" else None)
    return BoxPrompter(network, task, about, prompter, prompter_id)
