"""Inference as timm's users write it: torch's DataLoader, timm's transform and model, one model after the other."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import synchronize
from ingest.pool import pool_shards
from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import usable_cores
from pipeline.training.autotune import ComputeConfig

WARM_BATCHES, BATCH = 2, 64


class PoolImages(Dataset[torch.Tensor]):
    """The pool's images, over and over up to a number of them."""

    def __init__(self, inputs: Inputs, count: int, transform: Any) -> None:
        shards = [shard for _, shard, _ in pool_shards(inputs["pool"], inputs.of_kind("data"))]
        self.places = [(shard, row) for shard in shards for row in range(len(shard))]
        self.count, self.transform = count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> torch.Tensor:
        shard, row = self.places[position % len(self.places)]
        transformed: torch.Tensor = self.transform(Image.open(io.BytesIO(shard.read(row))).convert("RGB"))
        return transformed


def measure_timm(
    inputs: Inputs, backbones: Mapping[str, tuple[str, int]], images: int, computes: Mapping[str, ComputeConfig]
) -> dict[str, Any]:
    """Return the images per second of timm's loop of each teacher's backbone at its size, and of all in succession.

    Each computes in the format that is the fastest for the teacher here.
    """
    rates = {
        teacher: time_loop(PoolImages(inputs, images, None), backbone, computes[teacher])
        for teacher, backbone in backbones.items()
    }
    return {"backbones": backbones, "rates": rates, "rate": 1 / sum(1 / rate for rate in rates.values())}


@torch.inference_mode()
def time_loop(images: PoolImages, backbone: tuple[str, int], compute: ComputeConfig) -> float:
    """Return the images per second of a plain loop over the images, after the first batches."""
    name, size = backbone
    model = compute.place(timm.create_model(name, pretrained=False).eval())
    images.transform = create_transform(**{**resolve_data_config({}, model=model), "input_size": (3, size, size)})
    loader = DataLoader(images, BATCH, num_workers=usable_cores(), pin_memory=compute.device == "cuda")
    began, counted = 0.0, 0
    for number, batch in enumerate(loader):
        if number == WARM_BATCHES:
            synchronize(compute.device)
            began = time.perf_counter()
        with compute.autocast():
            moved = batch.to(compute.device, non_blocking=True, memory_format=compute.memory_format)
            model(moved).argmax(dim=1).cpu()
        counted += len(batch) if number >= WARM_BATCHES else 0
    return counted / (time.perf_counter() - began)
