"""Image corruptions: eight of ImageNet-C's (Hendrycks and Dietterich, ICLR 2019), with its constants.

They are applied to the resized image (S, S, 3) uint8. Lengths in pixels are for images of 224 pixels and scale with S.
"""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

VERSION = 1
SEVERITIES = (1, 3, 5)
"""Severities that are measured, of the published 1 to 5."""
SIDE = 224
"""Side in pixels of the images that the constants are for."""
Pixels = NDArray[np.uint8]
CorruptionFunction = Callable[[Pixels, int, np.random.Generator], NDArray[np.floating] | Pixels]
ABOUT = f"mean over eight of ImageNet-C's corruptions at severities {', '.join(map(str, SEVERITIES))}"


def _gaussian_noise(image: Pixels, level: int, rng: np.random.Generator) -> NDArray[np.floating]:
    return image + 255 * rng.normal(scale=(0.08, 0.12, 0.18, 0.26, 0.38)[level], size=image.shape)


def _shot_noise(image: Pixels, level: int, rng: np.random.Generator) -> NDArray[np.floating]:
    photons = (60, 25, 12, 5, 3)[level]
    return rng.poisson(image / 255 * photons) / photons * 255


def _impulse_noise(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    hit = rng.random(image.shape) < share
    return np.where(hit, np.where(rng.random(image.shape) < 0.5, 0, 255), image).astype(np.uint8)


def _gaussian_blur(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    sigma = (1, 2, 3, 4, 6)[level] * len(image) / SIDE
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def _brightness(image: Pixels, level: int, rng: np.random.Generator) -> NDArray[np.floating]:
    """Raise V of HSV, which scales all channels by one factor."""
    value = image.max(axis=2, keepdims=True) / 255
    raised = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 1)
    return np.where(value > 0, image * (raised / np.maximum(value, 1 / 255)), raised * 255)


def _contrast(image: Pixels, level: int, rng: np.random.Generator) -> NDArray[np.floating]:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean


def _pixelate(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    side = max(1, round(len(image) * (0.6, 0.5, 0.4, 0.3, 0.25)[level]))
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize((len(image), len(image)), Image.Resampling.BOX))


def _jpeg(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return np.asarray(Image.open(buffer).convert("RGB"))


CORRUPTIONS: dict[str, CorruptionFunction] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}


def corrupt(image: Pixels, name: str, severity: int) -> Pixels:
    """Return an image (S, S, 3) uint8 with a corruption at a severity from 1 to 5, always the same for an image."""
    seed = zlib.crc32(np.ascontiguousarray(image).data)
    output = CORRUPTIONS[name](image, severity - 1, np.random.default_rng([seed, severity]))
    return np.clip(np.round(output), 0, 255).astype(np.uint8)


def corruption_functions() -> Iterator[tuple[str, Callable[[Pixels], Pixels]]]:
    """Yield (name, function of an image) for every corruption at each of SEVERITIES."""
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            yield name, functools.partial(corrupt, name=name, severity=severity)
