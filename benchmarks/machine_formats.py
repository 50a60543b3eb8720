"""Measure the speed of bfloat16 and channels-last for some models: the reason for `pipeline/training/autotune.py`.

python -m benchmarks.machine_formats
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

import statistics
import tempfile
from collections.abc import Callable
from typing import Annotated

import timm
import torch
import typer
from torch import nn

from benchmarks.measure import RESULTS, describe_environment, save_result
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.training.autotune import ComputeConfig, autotune
from pipeline.training.device import find_device

MODELS = ("resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224")
SIDE = 224


def training(images: torch.Tensor) -> Callable[[nn.Module, ComputeConfig], None]:
    """Return a function that runs a forward and a backward pass."""

    def call(model: nn.Module, compute: ComputeConfig) -> None:
        with compute.autocast():
            output = model.train()(place_images(images, compute))
        output.float().logsumexp(dim=1).mean().backward()
        model.zero_grad()

    return call


def inference(images: torch.Tensor) -> Callable[[nn.Module, ComputeConfig], None]:
    """Return a function that runs a forward pass."""

    def call(model: nn.Module, compute: ComputeConfig) -> None:
        with torch.inference_mode(), compute.autocast():
            model.eval()(place_images(images, compute))

    return call


def place_images(images: torch.Tensor, compute: ComputeConfig) -> torch.Tensor:
    """Return the images on the device, in the memory layout of `compute`."""
    return images.to(compute.device).contiguous(memory_format=compute.memory_format)


def measure(name: str, call: Callable[[nn.Module, ComputeConfig], None], repeats: int) -> dict[str, float]:
    """Return the median milliseconds per call for each number format and memory layout."""
    model, measured = timm.create_model(name), []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as root:  # a new root, since the choice is cached in it
            measured.append(autotune(Runtime(Root.of(root)), name, model, call).measured_ms)
    return {way: statistics.median(times[way] for times in measured) for way in measured[0]}


def main(
    batch: Annotated[int, typer.Option(help="Images per call; 0: 16 on a CPU, 128 elsewhere.")] = 0, repeats: int = 3
) -> None:
    """Measure, print, and write `machine_formats-DEVICE` to the results."""
    device = find_device("auto")
    batch = batch or (16 if device == "cpu" else 128)
    environment, images = describe_environment(device), torch.rand(batch, 3, SIDE, SIDE)
    milliseconds = {
        f"{name}, {use}": measure(name, call, repeats)
        for name in MODELS
        for use, call in (("training", training(images)), ("inference", inference(images)))
    }
    rates = {use: {way: batch / ms * 1000 for way, ms in times.items()} for use, times in milliseconds.items()}
    table = [("images/s", *next(iter(rates.values())))]
    table += [(use, *(f"{rate:.1f}" for rate in by_way.values())) for use, by_way in rates.items()]
    result = {"measured": environment, "batch": batch, "side": SIDE, "images_per_s": rates}
    save_result(RESULTS / f"machine_formats-{device}.json", "Number formats and memory layouts", result, table)


if __name__ == "__main__":
    typer.run(main)
