"""Augmentation for tests."""

from __future__ import annotations

from pipeline.recipe.augment import AugmentConfig

NO_AUGMENTATION = AugmentConfig(area=1, aspect=1, flip=0, brightness=0, contrast=0, saturation=0)
