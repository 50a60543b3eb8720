"""Color and sharpness augmentation of views, in batches on the device, each image by its own draw (kornia).

Hue, saturation, grayscale and solarize are for pictures: of bands, tone and sharpness change.
"""

from __future__ import annotations

import kornia.augmentation as aug
import torch
from torch import Tensor, nn

from pipeline.data.bands import RGB
from pipeline.data.loader import to_float
from selfsup.components.method import Policy, ViewKind

SIGMA = (0.1, 2.0)
"""Range of the blur's standard deviation, in pixels."""
SOLARIZE_THRESHOLD = 0.5


class ColorJitter(nn.Module):
    """Augment views of a kind by its policy, in SimCLR's and BYOL's order.

    Pictures (B, 3, S, S) uint8 -> float32 in [0, 1]; bands (B, `channels`, S, S) float32 stay in their own numbers.
    """

    def __init__(self, kind: ViewKind, channels: int = RGB) -> None:
        super().__init__()
        policy, self.is_picture = kind.policy, channels == RGB
        kernel = max(3, kind.size // 10 // 2 * 2 + 1)
        blur = [aug.RandomGaussianBlur((kernel, kernel), SIGMA, p=policy.blur)] if policy.blur else []
        self.transforms = [*_color_transforms(policy), *blur] if self.is_picture else [ToneJitter(policy), *blur]
        """Not submodules: their draws stay on the host, where kornia looks at them, and no step waits for a GPU."""
        if policy.solarize and self.is_picture:
            threshold = (SOLARIZE_THRESHOLD, SOLARIZE_THRESHOLD)
            self.transforms.append(aug.RandomSolarize(threshold, (0.0, 0.0), p=policy.solarize))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            augmented = to_float(images)
            for transform in self.transforms:
                augmented = transform(augmented)
        return augmented.clamp(0, 1) if self.is_picture else augmented


def _color_transforms(policy: Policy) -> list[nn.Module]:
    strengths = (policy.brightness, policy.contrast, policy.saturation, policy.hue)
    jitter = [aug.ColorJitter(*strengths, p=policy.jitter)] if policy.jitter and any(strengths) else []
    return jitter + ([aug.RandomGrayscale(p=policy.grayscale)] if policy.grayscale else [])


class ToneJitter(nn.Module):
    """Change the tone of bands (B, C, S, S) float32 in any unit, as `pipeline.data.augment` does.

    Contrast is about a channel's mean in the image, and brightness shifts by a share of its deviation there.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, images: Tensor) -> Tensor:
        policy = self.policy
        changed, brightness, contrast = torch.rand(3, len(images), 1, 1, 1)
        changed = (changed < policy.jitter).float()
        shift = changed * policy.brightness * (2 * brightness - 1)
        stretch = (changed * policy.contrast * (2 * contrast - 1)).clamp_min(-1)
        shift, stretch = (each.to(images.device, non_blocking=True) for each in (shift, stretch))
        std, mean = torch.std_mean(images, dim=(2, 3), keepdim=True, correction=0)
        return images + stretch * (images - mean) + shift * std
