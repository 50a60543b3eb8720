"""Scoring: what a predictor is given of an image when it is measured."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import tasks
from pipeline.data.dataset import DatasetShard, ImageDataset
from pipeline.data.decode import decode_image
from pipeline.recipe.augment import Resize
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import LabelSpace
from tasks.prediction import Predictor, Preprocessing
from tasks.scoring import predict_all, score


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

    def predict(self, images: Tensor, sizes: Any) -> Any:
        self.seen = images
        return {}

    def values(self, predictions: Any, index: int, size: tuple[int, int]) -> Any:
        return {"size": size}


def test_predict_all_measures_on_the_pixels_that_labelling_reads(runtime: Runtime) -> None:
    """Labelling decodes a JPEG no larger than it needs; the label is for the image's own size."""
    spy, photograph = Spy(), Photograph()
    [(index, values)] = predict_all(spy, photograph, runtime)  # type: ignore[arg-type]
    reduced = decode_image(photograph.data, at_least=spy.preprocessing.min_decode_size((401, 300)))
    assert max(reduced.size) < 100
    assert np.array_equal(spy.seen[0].permute(1, 2, 0).numpy(), spy.preprocessing(reduced, (401, 300)))
    assert (index, dict(values)["size"]) == (0, (401, 300))  # type: ignore[comparison-overlap]


class RedIsDepth(nn.Module):
    """A network that is right: depth in metres is 1 + red / 50."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        red = functional.avg_pool2d(images[:, :1].float(), 4)
        return {"depth": (1 + red / 50).log()}


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_score_does_not_depend_on_how_images_become_square(
    make_dataset_shard: Callable[..., DatasetShard], runtime: Runtime, resize: Resize
) -> None:
    space = LabelSpace("depth")
    red = [
        np.tile(np.linspace(0, 250, width).astype(np.uint8), (height, 1)) for width, height in ((200, 90), (64, 128))
    ]
    images = [np.stack([ramp, ramp * 0, ramp * 0], axis=-1) for ramp in red]
    truth = [{"depth": 1 + ramp.astype(np.float32) / 50} for ramp in red]
    dataset = ImageDataset([make_dataset_shard("s0", images, {"depth": (tasks.label(space), truth)})])
    predictor = Predictor(RedIsDepth(), {"depth": tasks.model(space)}, Preprocessing(128, resize))
    assert score(predictor, dataset, "depth", runtime)["abs_rel"] < 0.02
    shapes = [values["depth"]["depth"].shape for _, values in predict_all(predictor, dataset, runtime)]
    assert shapes == ([(14, 32), (32, 16)] if resize == "pad" else [(32, 32)] * 2)
