"""Scoring: what a predictor is given of an image when it is measured."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import tasks
from pipeline.data.dataset import DatasetShard, ImageDataset
from pipeline.data.decode import decode_image
from pipeline.errors import DataError
from pipeline.recipe.augment import Resize
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import LabelSpace
from tasks.prediction import Predictor, Preprocessing, check_finite_label
from tasks.scoring import predict_all, score
from tests.spaces import every_space, head_of, value_of


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
        return {"head": {"size": np.array(size)}}


def test_predict_all_measures_on_the_pixels_that_labelling_reads(runtime: Runtime) -> None:
    """Labelling decodes a JPEG no larger than it needs; the label is for the image's own size."""
    spy, photograph = Spy(), Photograph()
    [(index, values)] = predict_all(spy, photograph, runtime)  # type: ignore[arg-type]
    reduced = decode_image(photograph.data, at_least=spy.preprocessing.min_decode_size((401, 300)))
    assert max(reduced.size) < 100
    assert np.array_equal(spy.seen[0].permute(1, 2, 0).numpy(), spy.preprocessing(reduced, (401, 300)))
    assert (index, values["head"]["size"].tolist()) == (0, [401, 300])


class RedIsDepth(nn.Module):
    """A network that is right: depth in metres is 1 + red / 50."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        red = F.avg_pool2d(images[:, :1].float(), 4)
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


class NotANumber(nn.Module):
    """A network whose output is NaN, although its weights are finite."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"depth": torch.full((len(images), 1, 8, 8), torch.nan)}


def test_score_refuses_predictions_that_are_not_finite(
    make_dataset_shard: Callable[..., DatasetShard], runtime: Runtime
) -> None:
    space = LabelSpace("depth")
    truth = [{"depth": np.ones((32, 32), np.float32)}]
    images = [np.zeros((32, 32, 3), np.uint8)]
    dataset = ImageDataset([make_dataset_shard("s0", images, {"depth": (tasks.label(space), truth)})])
    predictor = Predictor(NotANumber(), {"depth": tasks.model(space)}, Preprocessing(32))
    with pytest.raises(DataError, match=r"depth can't be scored on image \w+: the model's depth are not finite"):
        score(predictor, dataset, "depth", runtime)


@every_space
def test_check_finite_label_refuses_any_number_that_is_not(space: LabelSpace) -> None:
    value = value_of(space, 0)
    check_finite_label(value)
    for name, array in value.items():
        if array.dtype.kind == "f" and array.size:
            for wrong in (np.nan, np.inf):
                damaged = array.copy()
                damaged.flat[-1] = wrong
                with pytest.raises(DataError, match=rf"the model's {name} are not finite: .* 1 of {array.size:,}"):
                    check_finite_label({**value, name: damaged})


@every_space
def test_predictor_setup_refuses_weights_that_are_not_finite(space: LabelSpace, runtime: Runtime) -> None:
    """For every task: a detector drops boxes whose score is NaN, and would say that there is nothing."""
    task, head = head_of(space)
    network = copy.deepcopy(head)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(DataError, match="the model of x has weights that are not finite, in "):
        Predictor(network, {"x": task}, Preprocessing(32)).setup(runtime, "x")
