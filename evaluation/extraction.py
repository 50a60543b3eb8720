"""A frozen backbone that is run on the images of datasets, the fastest way that this machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from evaluation import corruptions
from evaluation.measurement import CLEAN
from pipeline.data.dataset import ImageDataset
from pipeline.models.backbone import Backbone
from pipeline.models.features import BATCH, extract_features, extract_maps, identity
from pipeline.models.initial import InitialBackbone
from pipeline.steps.runtime import Runtime
from pipeline.training import autotune
from pipeline.training.device import find_device

Change = Callable[[Any], Any]
"""What an image is put through before the backbone sees it."""
AUTOTUNE_IMAGES = 16
"""Images of the forward pass that is timed on a CPU."""


def image_changes(corrupted: bool) -> Iterator[tuple[str, Change]]:
    """Yield what test images go through, by name: nothing first, then every corruption if asked for."""
    yield CLEAN, identity
    if corrupted:
        yield from corruptions.corruption_functions()


class FeatureExtractor:
    """A frozen backbone, run the fastest way that this machine has."""

    def __init__(self, start: InitialBackbone, runtime: Runtime) -> None:
        self.runtime = runtime
        backbone = start.build().eval()
        count = autotune.timed_images(find_device(runtime.device), AUTOTUNE_IMAGES, BATCH)
        images = torch.rand(count, start.channels, start.size, start.size)
        key = [start.name, start.size, start.channels, "features"]
        self.compute = autotune.autotune_inference(runtime, key, backbone, images)
        self.backbone: Backbone = self.compute.place(backbone)

    def extract(self, images: ImageDataset, rows: Sequence[int], change: Change = identity) -> Tensor:
        """Return features (N, D) float32 of the images at `rows`, after `change`."""
        with self.compute.autocast():
            return extract_features(self.backbone, images, rows, self.runtime, change)

    def extract_maps(self, images: ImageDataset, rows: Sequence[int], change: Change = identity) -> list[Tensor]:
        """Return maps (N, C, h, w) float16 of the images at `rows`, after `change`, one for each stride."""
        with self.compute.autocast():
            return extract_maps(self.backbone, images, rows, self.runtime, change)
