"""Feature extraction: vectors and maps of a dataset's images, from a frozen backbone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import AugmentParams, transform_image
from pipeline.data.bands import decode_pixels
from pipeline.data.dataset import ImageDataset
from pipeline.data.loader import stack_images, to_float
from pipeline.data.prefetch import prefetch
from pipeline.models.backbone import Backbone
from pipeline.steps.runtime import Runtime

BATCH, BATCHES_PER_THREAD = 64, 2
"""Images in a batch, and batches that are prefetched per thread."""
Input = NDArray[Any]
"""An image as a network takes it: (S, S, 3) uint8, or (S, S, C) float32 of a set of C channels."""


def identity(pixels: Input) -> Input:
    """Return the image as it is."""
    return pixels


@torch.inference_mode()
def extract_features(
    backbone: Backbone,
    images: ImageDataset,
    indices: Sequence[int],
    runtime: Runtime,
    transform: Callable[[Input], Input] = identity,
) -> Tensor:
    """Return vectors (N, D) float32, on the host, of these images of a dataset.

    The backbone computes on the device it is on, in eval mode. Raises Stopped if a stop is asked for.

    Args:
        transform: applied to each image, which is resized as a whole to the backbone's square before.
    """
    with _eval_mode(backbone):
        return _concat(
            [backbone(batch).float().cpu() for batch in _batches(backbone, images, indices, runtime, transform)]
        )


@torch.inference_mode()
def extract_maps(
    backbone: Backbone,
    images: ImageDataset,
    indices: Sequence[int],
    runtime: Runtime,
    transform: Callable[[Input], Input] = identity,
) -> list[Tensor]:
    """Return maps, as `extract_features` returns vectors: for each stride (N, C, h, w) float16, on the host."""
    with _eval_mode(backbone):
        batches = _batches(backbone, images, indices, runtime, transform)
        found = [[_half(level) for level in backbone.readout(batch).maps] for batch in batches]
    return [_concat(level) for level in zip(*found, strict=True)]


def _concat(batches: Sequence[Tensor]) -> Tensor:
    with torch.autocast("cpu", enabled=False):  # which concatenates no float16
        return torch.cat(list(batches))


def _half(maps: Tensor) -> Tensor:
    """Return maps as float16 on the host; what is out of its range is clipped."""
    largest = torch.finfo(torch.float16).max
    return maps.float().clamp(-largest, largest).half().cpu()


@contextlib.contextmanager
def _eval_mode(backbone: Backbone) -> Iterator[None]:
    was_training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(was_training)


def _batches(
    backbone: Backbone,
    images: ImageDataset,
    indices: Sequence[int],
    runtime: Runtime,
    transform: Callable[[Input], Input],
) -> Iterator[Tensor]:
    """Yield images (B, C, S, S) on the backbone's device, as `to_float` makes them. Threads decode in advance."""

    def load_image(index: int) -> Input:
        image = decode_pixels(images.read(index)[1], images.channels, (backbone.size, backbone.size))
        return transform(transform_image(image, AugmentParams(), backbone.size))

    def load_batch(batch: Sequence[int]) -> Tensor:
        return stack_images([load_image(index) for index in batch])

    batches = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]
    ahead = prefetch(load_batch, batches, runtime.threads, BATCHES_PER_THREAD * runtime.threads)
    with contextlib.closing(ahead) as loaded:
        for batch in loaded:
            runtime.check_stop("extracting features")
            yield to_float(batch.to(backbone.mean.device))
