"""Feature extraction: images of a dataset through a frozen backbone."""

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
from pipeline.models.backbone import Backbone
from pipeline.steps.runtime import Runtime

BATCH, BATCHES_PER_THREAD = 64, 2
"""Images in a batch, and batches that are prefetched."""
Pixels = NDArray[np.uint8]


def identity(pixels: Pixels) -> Pixels:
    """Return the image as it is."""
    return pixels


@torch.inference_mode()
def extract_features(
    backbone: Backbone,
    images: ImageDataset,
    indices: Sequence[int],
    runtime: Runtime,
    transform: Callable[[Pixels], Pixels] = identity,
) -> Tensor:
    """Return features (N, D) float32, on the host, of these images of a dataset.

    The backbone computes on the device it is on, in eval mode. Raises Stopped if a stop is asked for.

    Args:
        transform: applied to each image (S, S, 3) uint8, which is resized as a whole to the backbone's square before.
    """

    def load_image(index: int) -> Pixels:
        image = decode_image(images.read(index)[1], at_least=(backbone.size, backbone.size))
        return transform(transform_image(image, AugmentParams(), backbone.size))

    def load_batch(batch: Sequence[int]) -> Tensor:
        return stack_images([load_image(index) for index in batch])

    device, was_training = backbone.mean.device, backbone.training
    backbone.eval()
    batches = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]
    features = []
    ahead = prefetch(load_batch, batches, runtime.threads, BATCHES_PER_THREAD * runtime.threads)
    with contextlib.closing(ahead) as loaded:
        for batch in loaded:
            runtime.check_stop("looking at features")
            features.append(backbone(batch.to(device).float() / 255).float().cpu())
    backbone.train(was_training)
    return torch.cat(features)
