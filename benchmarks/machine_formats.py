"""Measure what bfloat16 and channels-last bring, model by model: the reason for `pipeline/training/autotune.py`.

python benchmarks/machine_formats.py
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from torch import nn

from benchmarks.measure import circumstances, save_result
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.training.autotune import ComputeConfig, autotune
from pipeline.training.device import find_device

RESULTS = Path(__file__).parent / "results"
MODELS = ("resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224")
SIDE = 224


def training(images: torch.Tensor) -> Callable[[nn.Module, ComputeConfig], None]:
    """A forward and a backward pass."""

    def call(model: nn.Module, choice: ComputeConfig) -> None:
        with choice.autocast():
            output = model.train()(laid_out(images, choice))
        output.float().logsumexp(dim=1).mean().backward()
        model.zero_grad()

    return call


def inference(images: torch.Tensor) -> Callable[[nn.Module, ComputeConfig], None]:
    """A forward pass."""

    def call(model: nn.Module, choice: ComputeConfig) -> None:
        with torch.inference_mode(), choice.autocast():
            model.eval()(laid_out(images, choice))

    return call


def laid_out(images: torch.Tensor, choice: ComputeConfig) -> torch.Tensor:
    """The images on the device, in the memory layout that is tried."""
    return images.to(choice.device).contiguous(memory_format=choice.memory_format)


def measure(name: str, call: Callable[[nn.Module, ComputeConfig], None], repeats: int) -> dict[str, float]:
    """Milliseconds per call for each way of running the model."""
    model, found = timm.create_model(name), []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as root:  # a fresh one: the choice would be remembered
            found.append(autotune(Runtime(Root.of(root)), name, model, call).measured_ms)
    return {way: statistics.median(each[way] for each in found) for way in found[0]}


def main(
    batch: Annotated[int, typer.Option(help="Images per call; 0: 16 on a CPU, 128 elsewhere.")] = 0,
    repeats: int = 3,
) -> None:
    """Measure, print, and leave `machine_formats-<device>` among the results."""
    device = find_device("auto")
    batch = batch or (16 if device == "cpu" else 128)
    measured, images = circumstances(device), torch.rand(batch, 3, SIDE, SIDE)
    found = {
        f"{name}, {use}": measure(name, call, repeats)
        for name in MODELS
        for use, call in (("training", training(images)), ("inference", inference(images)))
    }
    ways = list(next(iter(found.values())))
    rates = {place: {way: batch / ms * 1000 for way, ms in times.items()} for place, times in found.items()}
    table = [("images/s", *ways)]
    table += [(place, *(f"{rate:.1f}" for rate in by_way.values())) for place, by_way in rates.items()]
    for line in table:
        print(f"{line[0]:<34}" + "".join(f"{cell:>18}" for cell in line[1:]))
    result = {"measured": measured, "batch": batch, "side": SIDE, "images_per_s": rates}
    save_result(RESULTS / f"machine_formats-{device}.json", "Number formats and memory layouts", result, table)


if __name__ == "__main__":
    typer.run(main)
