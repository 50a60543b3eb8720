"""Linear layer on the maps of a frozen backbone: segmentation, depth, normals, and every other task of rasters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evaluation.probe import MAX_MAP_IMAGES
from pipeline.recipe.base import FitConfig
from tasks.raster import RasterLabel

if TYPE_CHECKING:
    from evaluation.dense_probe import DenseProbeData, DenseProbeResult

VERSION = 1
READS = "maps"
LABEL = RasterLabel
STEPS, RATES = 500, (1e-2, 1e-3)
ABOUT = (
    f"a linear layer on standardised maps of whole images, upsampled bilinearly and summed at stride 4, AdamW, {STEPS} "
    f"steps of 16 images, cosine, learning rate {RATES[0]:g} or {RATES[1]:g} by the task's leading metric on "
    f"validation images, at most {MAX_MAP_IMAGES:,} images to learn from"
)
RANDOM = True
SETTINGS = FitConfig(batch=16, steps=STEPS, weight_decay=1e-4, warmup=0.0)


def fit(data: DenseProbeData) -> DenseProbeResult:
    """Train the layer by each learning rate, and return the one that is best on validation images."""
    import dataclasses

    from evaluation.dense_probe import DenseProbeResult, score_on_maps, train_on_maps
    from evaluation.linear_layer import DenseLinear
    from evaluation.measurement import max_or_min

    leading, direction = next(iter(data.task.better.items()))
    found: list[tuple[float, DenseProbeResult]] = []
    for rate in RATES:
        layer = DenseLinear(data.task, data.train.maps, data.train.side)
        trial = dataclasses.replace(data, scratch=data.scratch / f"{rate:g}")
        cost = train_on_maps(layer, trial, SETTINGS.model_copy(update={"lr": rate}))
        score = score_on_maps(layer, data.task, data.val).get(leading)  # None of all: too few labels to tell
        found.append((score or 0.0, DenseProbeResult(layer, {"lr": rate, "validation": score}, cost)))
    return max_or_min(direction)(found, key=lambda each: each[0])[1]
