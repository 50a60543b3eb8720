"""Color and sharpness augmentation of views, in batches on the device, each image by its own draw (kornia)."""

from __future__ import annotations

import kornia.augmentation as aug
import torch
from torch import Tensor, nn

from selfsup.components.method import ViewKind

SIGMA = (0.1, 2.0)
"""Range of the blur's standard deviation, in pixels."""
SOLARIZE_THRESHOLD = 0.5


class ColorJitter(nn.Module):
    """Augment views of a kind: (B, 3, S, S) uint8 -> float32 in [0, 1], by its policy, in SimCLR's and BYOL's order."""

    def __init__(self, kind: ViewKind) -> None:
        super().__init__()
        policy = kind.policy
        strengths = (policy.brightness, policy.contrast, policy.saturation, policy.hue)
        kernel = max(3, kind.size // 10 // 2 * 2 + 1)
        transforms: list[nn.Module] = []
        if policy.jitter and any(strengths):
            transforms.append(aug.ColorJitter(*strengths, p=policy.jitter))
        if policy.grayscale:
            transforms.append(aug.RandomGrayscale(p=policy.grayscale))
        if policy.blur:
            transforms.append(aug.RandomGaussianBlur((kernel, kernel), SIGMA, p=policy.blur))
        if policy.solarize:
            threshold = (SOLARIZE_THRESHOLD, SOLARIZE_THRESHOLD)
            transforms.append(aug.RandomSolarize(threshold, (0.0, 0.0), p=policy.solarize))
        self.transforms = transforms
        """Not submodules: their draws stay on the host, where kornia looks at them, and no step waits for a GPU."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            augmented = images.float() / 255
            for transform in self.transforms:
                augmented = transform(augmented)
        return augmented.clamp(0, 1)
