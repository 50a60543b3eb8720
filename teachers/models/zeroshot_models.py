"""Zero-shot models of Hugging Face transformers, which are told their classes in words, as networks of one head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

import tasks
from pipeline.data.augment import ValidSizes
from pipeline.models.checkpoint import read_tensors
from pipeline.stores.labels import LabelSpace
from tasks.prediction import Predictor
from tasks.rcnn import MIN_SCORE
from tasks.segmentation.model import TaskModel as Segmentation
from tasks.task import Prediction
from teachers.models.torchvision_models import Adapter, DetectedBoxes, Detector, resize_to_stride
from teachers.models.transformers_models import (
    IMAGES,
    check_image_size,
    describe_input,
    load_network,
    load_part,
    preprocessing_of,
)
from teachers.models.trunk import tap_trunk
from teachers.models.zeroshot_prompts import NO_CLASS, find_type, load_config, pooled

PROMPTS = "prompts.safetensors"
"""File of an artifact with what `encode_prompts` returned."""
NMS_IOU = 0.5
"""Of two boxes of one class that overlap more, the one with the lower score is dropped, as by detectors trained here.
"""


def fetch(about: Mapping[str, Any]) -> tuple[Any, Any]:
    """Load a teacher's model and its image processor.

    Raises ConfigError if there is no such model, it is not for the task, or it can't take images of the size.
    """
    config = load_config(about)
    check_image_size(config, about["image_size"])
    model = load_network(about["weights"], find_type(config, about).part, about["task"])
    return model, load_part(about["weights"], IMAGES, about["task"])


def describe(model: Any, processor: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the teacher's `model.json`: its preprocessing, and the classes and phrases."""
    pads = model.config.model_type == "owlv2"
    return {
        **about,
        "format": "zeroshot",
        "resize": about["resize"] or ("pad" if pads else "stretch"),
        **describe_input(processor, about),
    }


class BestOfClass(nn.Module):
    """Scores of phrases or tokens (..., P) -> the largest of each class (..., K); -inf for a class that has none.

    Args:
        class_of: the class of each phrase; those of NO_CLASS do not count.
        classes: K.
    """

    class_of: Tensor
    counted: Tensor

    def __init__(self, class_of: Sequence[int], classes: int) -> None:
        super().__init__()
        numbers = torch.tensor(class_of)
        self.register_buffer("counted", (numbers != NO_CLASS).nonzero()[:, 0])
        self.register_buffer("class_of", numbers[numbers != NO_CLASS])
        self.classes = classes

    def forward(self, scores: Tensor) -> Tensor:
        counted = scores[..., self.counted]
        best = counted.new_full((*counted.shape[:-1], self.classes), -torch.inf)
        return best.scatter_reduce(-1, self.class_of.expand(counted.shape), counted, "amax")


class EmbeddedPrompts(BestOfClass):
    """Embeddings of the phrases that images are compared with, (P, D): scores of phrases -> those of classes."""

    embeddings: Tensor

    def __init__(self, about: Mapping[str, Any], prompts: Mapping[str, Tensor]) -> None:
        super().__init__(about["class_of_phrase"], count_classes(about))
        self.register_buffer("embeddings", prompts["embeddings"])


def count_classes(about: Mapping[str, Any]) -> int:
    """Return the number of classes that have phrases."""
    return len(about["classes"]) - bool(about["background"])


def in_float32(inputs: Tensor) -> torch.autocast:
    """Return a context that computes in float32 on the device of the inputs."""
    return torch.autocast(inputs.device.type, enabled=False)


class PhraseClassifier(Adapter):
    """CLIP or SigLIP: logits (B, K) float32.

    CLIP compares classes with each other. SigLIP says yes or no to each, so that a class of several is in proportion to
    its yes.
    """

    def __init__(self, model: Any, about: Mapping[str, Any], prompts: Mapping[str, Tensor]) -> None:
        super().__init__(model, about["head"], (about["mean"], about["std"]))
        self.prompts = EmbeddedPrompts(about, prompts)
        self.compares_yes = hasattr(model, "logit_bias") and about["task"] == "classification"

    def run(self, inputs: Tensor) -> Tensor:
        model: Any = self.model
        features = pooled(model.get_image_features(pixel_values=inputs, interpolate_pos_encoding=True))
        with in_float32(inputs):
            similarity = F.normalize(features.float(), dim=-1) @ self.prompts.embeddings.T
            logits = similarity * model.logit_scale.exp() + getattr(model, "logit_bias", 0.0)
            best: Tensor = self.prompts(logits)
        return F.logsigmoid(best) if self.compares_yes else best


class MaskPrompter(Adapter):
    """CLIPSeg: a yes or no for each class in logits (B, K, S/4, S/4) float32, after that of the background if any."""

    def __init__(self, model: Any, about: Mapping[str, Any], prompts: Mapping[str, Tensor]) -> None:
        super().__init__(model, about["head"], (about["mean"], about["std"]))
        self.prompts = EmbeddedPrompts(about, prompts)
        self.has_background = bool(about["background"])
        tap_trunk(model.clip)

    def run(self, inputs: Tensor) -> Tensor:
        model: Any = self.model
        seen = model.clip.vision_model(pixel_values=inputs, output_hidden_states=True, interpolate_pos_encoding=True)
        layers = [seen.hidden_states[number + 1] for number in model.extract_layers]
        maps = []
        for embedding in self.prompts.embeddings:
            logits = model.decoder(layers, embedding.expand(len(inputs), -1)).logits
            maps.append(resize_to_stride(logits.float()[:, None], inputs.shape[-1]))
        best: Tensor = self.prompts(torch.stack(maps, dim=-1)).movedim(-1, 1).squeeze(2)
        return torch.cat([-best.amax(1, keepdim=True), best], 1) if self.has_background else best


class PromptedMasks(Segmentation):
    """The segmentation task for networks that say yes or no to each class: a pixel's confidence is that of its yes."""

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        confidence, classes = output.sigmoid().max(dim=1)
        return {"classes": classes, "confidence": confidence}


class PromptedDetector(Detector):
    """A detector whose boxes are told by `locate`: each has the class of its largest score.

    Such models give several boxes for one object, of one phrase or several: of boxes of a class that overlap, the best
    is kept.
    """

    def __init__(self, model: Any, about: Mapping[str, Any]) -> None:
        classes = count_classes(about)
        super().__init__(model, about["head"], (about["mean"], about["std"]), range(1, classes + 1))

    def detect(self, inputs: Tensor) -> list[dict[str, Tensor]]:
        boxes, logits = self.locate(inputs)
        best, labels = logits.max(dim=-1)
        corners = box_convert(boxes, "cxcywh", "xyxy") * inputs.shape[-1]
        return [self._distinct(*image) for image in zip(corners, best.sigmoid(), labels, strict=True)]

    def locate(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (B, N, 4) as center and size in [0, 1] of the input, and logits (B, N, K), both float32."""
        raise NotImplementedError

    def _distinct(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found = scores > MIN_SCORE
        boxes, scores, labels = boxes[found], scores[found], labels[found]
        kept = batched_nms(boxes, scores, labels, NMS_IOU)
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


class PatchDetector(PromptedDetector):
    """OWLv2: a box for each patch of the image."""

    def __init__(self, model: Any, about: Mapping[str, Any], prompts: Mapping[str, Tensor]) -> None:
        super().__init__(model, about)
        self.prompts = EmbeddedPrompts(about, prompts)
        tap_trunk(model.owlv2)

    def locate(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        model: Any = self.model
        resampled = inputs.shape[-1] != model.config.vision_config.image_size
        maps, _ = model.image_embedder(inputs, interpolate_pos_encoding=resampled)
        with in_float32(inputs):
            maps = maps.float()
            cells = maps.flatten(1, 2)
            boxes = model.box_predictor(cells, maps, resampled)
            logits, _ = model.class_predictor(cells, self.prompts.embeddings.expand(len(inputs), -1, -1))
            return boxes, self.prompts(logits)


class GroundedDetector(PromptedDetector):
    """Grounding DINO: boxes for each of the texts that hold all phrases, scored by the tokens of a phrase."""

    def __init__(self, model: Any, about: Mapping[str, Any], prompts: Mapping[str, Tensor]) -> None:
        super().__init__(model, about)
        numbers, classes = range(len(prompts) // 2), count_classes(about)
        for number in numbers:
            self.register_buffer(f"ids_{number}", prompts[f"ids.{number}"])
        self.best_of_class = nn.ModuleList(
            BestOfClass(prompts[f"classes.{number}"].tolist(), classes) for number in numbers
        )

    def locate(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        boxes, logits = [], []
        for number, best_of_class in enumerate(self.best_of_class):
            ids = self.get_buffer(f"ids_{number}")
            output = self.model(pixel_values=inputs, input_ids=ids.repeat(len(inputs), 1))
            boxes.append(output.pred_boxes.float())
            logits.append(best_of_class(output.logits[..., : len(ids)].float()))
        return torch.cat(boxes, 1), torch.cat(logits, 1)


ADAPTERS: dict[str, Callable[[Any, Mapping[str, Any], Mapping[str, Tensor]], Adapter]] = {
    "clip": PhraseClassifier,
    "siglip": PhraseClassifier,
    "clipseg": MaskPrompter,
    "owlv2": PatchDetector,
    "grounding-dino": GroundedDetector,
}


def build_predictor(folder: Path, about: Mapping[str, Any]) -> Predictor:
    """Build the predictor of the model in `folder`."""
    here = {**about, "weights": str(folder)}
    config = load_config(here)
    reads, network = find_type(config, here), ADAPTERS[config.model_type]
    model = load_network(str(folder), reads.part, about["task"])
    if not reads.joined:
        model.base_model.text_model = None  # its work is done, and it may be half of the model
    space = LabelSpace(about["task"], tuple(about["classes"]))
    kinds = {"detection": DetectedBoxes, "segmentation": PromptedMasks}
    task = kinds[about["task"]](space) if about["task"] in kinds else tasks.model(space)
    adapter = network(model, about, read_tensors(folder / PROMPTS)[1])
    return Predictor(adapter, {about["head"]: task}, preprocessing_of(about))
