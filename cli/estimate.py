"""Estimate how long a run's trainings take, and how much memory a GPU needs, from a few steps on this machine."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from evaluation.report.formatting import duration
from pipeline.models.gradient_checkpointing import checkpoint_blocks
from pipeline.models.readout import read, readout_info
from pipeline.models.timm_models import create_timm_model
from pipeline.recipe.base import FitConfig, NamedBackbone
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.stage import StageConfig
from pipeline.stores.naming import round_student

IMAGES = 4
"""Images of a timed step."""
BUDGET_S, MAX_STEPS = 10.0, 10
"""Seconds for all timed steps together, and steps of each model."""
HEADS = 0.3
"""The heads' part of a step and the decoding of its images, in steps of the backbone: a rough factor."""
VIEWS = 2
"""Views of an image in a self-supervised step."""
BYTES_PER_PARAMETER, FROZEN_BYTES = 16, 4
"""Weights, gradients, and AdamW's two averages, in float32; weights alone."""
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of a training step of a backbone, per image."""

    seconds: float
    forward_seconds: float
    """Of the forward pass alone, which is all that a frozen backbone makes."""
    activations: float
    """Bytes that are kept for the backward pass, in float32."""
    parameters: int

    def with_heads(self, frozen: bool) -> float:
        """Return the seconds of a step with its heads."""
        return (self.forward_seconds if frozen else self.seconds) + HEADS * self.seconds

    def memory(self, images: int, frozen: bool) -> float:
        """Return the bytes of a step with its heads and so many images at once."""
        kept = self.activations * (HEADS if frozen else 1 + HEADS)
        return self.parameters * (FROZEN_BYTES if frozen else BYTES_PER_PARAMETER) + images * kept


def estimate(recipe: Recipe, images: Mapping[str, int], device: str) -> Iterator[tuple[str, str]]:
    """Yield (what, how long and how much memory) for each training of a recipe, and for all of them together.

    `images`: training images by set.
    """
    trainings = list(_trainings(recipe, images))
    budget = BUDGET_S / max(1, len({backbone for _, _, backbone, _ in trainings}))
    checkpointed = recipe.runtime.gradient_checkpointing
    measure = functools.cache(lambda name, size: measure_step(name, size, device, budget, checkpointed))
    total, largest = 0.0, 0.0
    for place, config, backbone, count in trainings:
        cost = measure(backbone.name, backbone.image_size)
        steps, views = config.total_steps(count), VIEWS if isinstance(config, StageConfig) else 1
        seconds = steps * config.batch * views * cost.with_heads(backbone.frozen)
        memory = cost.memory(config.batch // config.accumulate * views, backbone.frozen)
        total, largest = total + seconds, max(largest, memory)
        yield place, f"{steps:,} steps of {config.batch} images: about {duration(seconds)}, {memory / GIB:.1f} GiB"
    if trainings:
        yield (
            "all trainings",
            (
                f"about {duration(total)} on this machine ({device}), within a factor of two; labelling and measuring "
                f"come on top; a GPU needs about {largest / GIB:.1f} GiB, in bfloat16 about half"
            ),
        )


def _trainings(recipe: Recipe, images: Mapping[str, int]) -> Iterator[tuple[str, FitConfig, NamedBackbone, int]]:
    """Yield the place, the schedule, the backbone and the number of images of each training."""
    for name, teacher in recipe.teachers.items():
        if isinstance(teacher, FitConfig) and teacher.training_set:
            yield f"teachers.{name}", teacher, teacher.named_backbones()[0], images.get(teacher.training_set, 0)
    pooled = sum(images.get(name, 0) for name in recipe.pool)
    for number in range(1, recipe.rounds + 1):
        name = round_student(number, recipe.rounds)
        yield name, recipe.student, recipe.student.named_backbones()[0], pooled
    for stage in recipe.chain():
        count = sum(images.get(name, 0) for name in stage.data)
        yield f"stages.{stage.name}", stage, stage.named_backbones()[0], count


def measure_step(name: str, image_size: int, device: str, budget: float, checkpointed: bool = False) -> StepCost:
    """Measure training steps of a timm model on images of a side, for up to `budget` seconds.

    With `checkpointed`, they are those of gradient checkpointing; what its largest block keeps is not counted.
    """
    model: Any = create_timm_model(name, image_size).to(device).train()
    if checkpointed:
        checkpoint_blocks(model, name)
    indices = readout_info(name, image_size).indices
    images = torch.rand(IMAGES, 3, image_size, image_size, device=device)

    def forward() -> Tensor:
        vector, maps = read(model, images, indices)
        return torch.stack([tensor.sum() for tensor in (vector, *maps)]).sum()

    def step() -> None:
        forward().backward()

    saved = _saved_bytes(step)  # the first step, which is slower, is not timed
    seconds = _median_seconds(step, device, budget)
    with torch.no_grad():
        forward_seconds = _median_seconds(forward, device, budget / 4)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return StepCost(seconds / IMAGES, forward_seconds / IMAGES, saved / IMAGES, parameters)


def _median_seconds(work: Callable[[], object], device: str, budget: float) -> float:
    """Return the median seconds of a piece of work, done once or more often, for up to `budget` seconds."""
    times: list[float] = []
    while len(times) < MAX_STEPS and (not times or sum(times) < budget):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def _saved_bytes(step: Callable[[], None]) -> int:
    """Return the bytes of the tensors that a step keeps for its backward pass, each counted once."""
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no address is given twice

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storages.values())
