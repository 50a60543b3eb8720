"""Scoring: what a predictor is given of an image when it is measured."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.data.decode import decode_image
from pipeline.steps.runtime import Runtime
from tasks.prediction import Preprocessing
from tasks.scoring import predict_all


class Photograph:
    """A dataset of one large JPEG."""

    def __init__(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (300, 401, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "JPEG")
        self.data = file.getvalue()

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> tuple[str, bytes]:
        return "key", self.data

    def size(self, index: int) -> tuple[int, int]:
        return 401, 300


class Spy:
    """A predictor that keeps what it is given."""

    preprocessing = Preprocessing(32)

    def predict(self, images: Tensor) -> Any:
        self.seen = images
        return {}

    def values(self, predictions: Any, index: int, size: tuple[int, int]) -> Any:
        return {"size": size}


def test_predict_all_measures_on_the_pixels_that_labelling_reads(runtime: Runtime) -> None:
    """Labelling decodes a JPEG no larger than it needs; the label is for the image's own size."""
    spy, photograph = Spy(), Photograph()
    [(index, values)] = predict_all(spy, photograph, runtime)  # type: ignore[arg-type]
    reduced = decode_image(photograph.data, at_least=spy.preprocessing.min_decode_size())
    assert max(reduced.size) < 100
    assert np.array_equal(spy.seen[0].permute(1, 2, 0).numpy(), spy.preprocessing(reduced))
    assert (index, dict(values)["size"]) == (0, (401, 300))  # type: ignore[comparison-overlap]
