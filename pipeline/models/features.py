"""Images of a library through a frozen backbone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import AugmentParams, transform_image
from pipeline.data.dataset import ImageDataset
from pipeline.data.decode import decode_image
from pipeline.data.loader import stack_images
from pipeline.data.prefetch import prefetch
from pipeline.models.encoder import Encoder
from pipeline.steps.runtime import Runtime

AT_ONCE, AHEAD = 64, 2
"""Images in one pass, and passes per thread that are made ready before they are asked for."""
Pixels = NDArray[np.uint8]


def as_it_is(pixels: Pixels) -> Pixels:
    """No change."""
    return pixels


@torch.inference_mode()
def features_of(
    encoder: Encoder,
    images: ImageDataset,
    chosen: Sequence[int],
    runtime: Runtime,
    change: Callable[[Pixels], Pixels] = as_it_is,
) -> Tensor:
    """Features (N, D) float32, on the host, of these images of a library: whole, resized to the encoder's square
    (S, S, 3) uint8 and then changed. The encoder computes where it is, with its running statistics. Raises Stopped.
    """

    def ready(indices: Sequence[int]) -> Tensor:
        return stack_images([change(whole_image(images, index, encoder.size)) for index in indices])

    device, was_training = encoder.mean.device, encoder.training
    encoder.eval()
    runs = [chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE)]
    parts = []
    with contextlib.closing(prefetch(ready, runs, runtime.threads, AHEAD * runtime.threads)) as batches:
        for batch in batches:
            runtime.check_stop("looking at features")
            parts.append(encoder(batch.to(device).float() / 255).float().cpu())
    encoder.train(was_training)
    return torch.cat(parts)


def whole_image(images: ImageDataset, index: int, size: int) -> Pixels:
    """An image of a library, all of it, as (size, size, 3) uint8."""
    return transform_image(decode_image(images.read(index)[1], at_least=(size, size)), AugmentParams(), size)
