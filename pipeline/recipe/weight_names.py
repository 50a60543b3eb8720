"""Names of weights that are no files of the user's: published ones, and those in installed packages. No torch."""

from __future__ import annotations

PUBLISHERS = ("timm", "torchvision")
"""Libraries that download the weights they publish."""
PACKAGE = "package:"
"""Prefix of a file inside an installed package."""
HUB = "hub:"
"""Prefix of a name on the Hugging Face hub."""


def is_path(weights: str) -> bool:
    """Return True if weights are named by the path of a file or folder."""
    return weights not in PUBLISHERS and not weights.startswith((PACKAGE, HUB))
