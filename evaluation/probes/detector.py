"""Detector on a frozen backbone: pyramid, region proposals and box head, as in MuST, learn on its maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evaluation.probe import MAX_MAP_IMAGES
from pipeline.recipe.base import FitConfig
from tasks.detection.label import TaskLabel

if TYPE_CHECKING:
    from evaluation.dense_probe import DenseProbeData, DenseProbeResult

VERSION = 2
READS = "maps"
LABEL = TaskLabel
SETTINGS = FitConfig(batch=8, steps=400, lr=1e-3)
ABOUT = (
    f"feature pyramid, region proposals and box head on the maps of whole images, AdamW, {SETTINGS.steps} steps of "
    f"{SETTINGS.batch} images, cosine, learning rate {SETTINGS.lr:g}, the last step's weights, at most "
    f"{MAX_MAP_IMAGES:,} images to learn from"
)
RANDOM = True


def fit(data: DenseProbeData) -> DenseProbeResult:
    """Train the detector and return it as it is after the last step."""
    from evaluation.dense_probe import DenseProbeResult, train_on_maps
    from tasks.network import PyramidHead, seed_part
    from tasks.task import FeatureInfo

    seed_part(data.seed, "detector")
    info = FeatureInfo(data.channels[-1], data.width, data.train.side, data.proposals)
    head = PyramidHead(data.task, data.strides, data.channels, info)
    settings = {"width": data.width, "proposals": data.proposals}
    return DenseProbeResult(head, settings, train_on_maps(head, data, SETTINGS))
