"""Mean and standard deviation of each channel of a set's own images. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import AugmentParams, transform_image
from pipeline.data.bands import RGB, decode_bands
from pipeline.data.dataset import ImageDataset
from pipeline.data.decode import decode_image

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation per channel, for images in [0, 1]; of other channels than 3, in their own numbers."""
MAX_IMAGES, SIDE = 2000, 64
"""Images that mean and standard deviation are measured on, at most, and the side in pixels that they are resized to."""
CONSTANT = 1e-12
"""Share of a channel's mean square below which its variance is none, but what rounding leaves."""


def image_statistics(images: ImageDataset) -> Statistics:
    """Return mean and standard deviation per channel of images spread evenly over the set.

    Pictures are in [0, 1], images of other channels than RGB in their own numbers.
    """
    sums, squares, count = np.zeros(images.channels), np.zeros(images.channels), 0
    for index in range(0, len(images), -(-len(images) // MAX_IMAGES)):
        _, pixels = images.decode(index, lambda data: _pixels(data, images.channels))
        sums, squares, count = sums + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean, square = sums / count, squares / count
    std = np.sqrt(np.maximum(square - mean**2, 1e-6)) if images.channels == RGB else deviations(mean, square)
    return tuple(mean.tolist()), tuple(std.tolist())


def deviations(mean: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviations of channels, given the means of their numbers and of these squared; 1 for a
    channel that does not vary.
    """
    variance = square - mean**2
    return np.sqrt(np.where(variance > CONSTANT * square, variance, 1))


def own_statistics(images: ImageDataset) -> Statistics | None:
    """Return the statistics of images of other channels than RGB, which no published model has any for; else None."""
    return None if images.channels == RGB else image_statistics(images)


def _pixels(data: bytes, channels: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the pixels (N, C) of an image, resized."""
    if channels == RGB:
        image = decode_image(data, at_least=(SIDE, SIDE))
        return np.asarray(image.resize((SIDE, SIDE)), np.float64).reshape(-1, RGB) / 255
    bands = transform_image(decode_bands(data, channels), AugmentParams(), SIDE)
    return bands.reshape(-1, channels).astype(np.float64)
