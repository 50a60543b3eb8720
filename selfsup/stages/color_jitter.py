"""Changes of colour and sharpness, in batches on the device, each image by its own draw (kornia)."""

from __future__ import annotations

import kornia.augmentation as aug
import torch
from torch import Tensor, nn

from selfsup.components.method import ViewKind

SIGMA = (0.1, 2.0)
"""Of the blur, pixels."""
MIDDLE = 0.5
"""What is brighter is inverted by solarizing."""


class Colours(nn.Module):
    """Views of a kind (B, 3, S, S), uint8 -> float32 in [0, 1], changed as SimCLR, BYOL and successors change them."""

    def __init__(self, kind: ViewKind) -> None:
        super().__init__()
        policy = kind.policy
        strengths = (policy.brightness, policy.contrast, policy.saturation, policy.hue)
        kernel = max(3, kind.size // 10 // 2 * 2 + 1)
        changes: list[nn.Module] = []
        if policy.jitter and any(strengths):
            changes.append(aug.ColorJitter(*strengths, p=policy.jitter))
        if policy.grayscale:
            changes.append(aug.RandomGrayscale(p=policy.grayscale))
        if policy.blur:
            changes.append(aug.RandomGaussianBlur((kernel, kernel), SIGMA, p=policy.blur))
        if policy.solarize:
            changes.append(aug.RandomSolarize((MIDDLE, MIDDLE), (0.0, 0.0), p=policy.solarize))
        self.changes = nn.Sequential(*changes)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            changed: Tensor = self.changes(images.float() / 255)
        return changed.clamp(0, 1)
