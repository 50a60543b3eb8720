"""Regression: arrays on disk without loss, unknown numbers by channel, and arrays that do not lie over the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from pipeline.data.augment import Placement
from pipeline.data.dataset import DatasetShard, ImageDataset
from pipeline.errors import DataError
from pipeline.stores.labels import LabelSpace, Value
from tasks import training
from tasks.prediction import to_numpy
from tasks.regression.label import TaskLabel
from tasks.regression.model import GRID, TaskModel
from tasks.task import FeatureInfo, Features

SPACE = LabelSpace("regression", ("height", "slope"), unit="m", mean=(100.0, 0.0), std=(20.0, 0.5))
SOUND = LabelSpace("regression", ("loudness",), aligned=False)
LABEL, TASK = TaskLabel(SPACE), TaskModel(SPACE)


def random_value(seed: int, shape: tuple[int, int] = (9, 13), unknown: float = 0.2) -> Value:
    rng = np.random.default_rng(seed)
    values = rng.normal(SPACE.mean, SPACE.std, (*shape, 2))
    values[rng.random(values.shape) < unknown] = np.nan
    return {"values": values.astype(np.float32)}


def test_label_space_survives_json_and_statistics_change_no_meaning() -> None:
    for space in (SPACE, SOUND, LabelSpace("regression", ("a",), unit="dB", aligned=False)):
        back = LabelSpace.from_json(space.to_json())
        assert (back, back.mean, back.std) == (space, space.mean, space.std)
    assert LabelSpace("regression", SPACE.classes, unit="m") == SPACE
    assert LabelSpace("regression", SPACE.classes, unit="ft") != SPACE
    assert LabelSpace("depth").to_json() == {"task": "depth", "classes": [], "scale": "metric"}


@pytest.mark.parametrize("wrong", [{"unit": 3}, {"aligned": "no"}, {"mean": [1.0]}, {"mean": [1, 2], "std": [1]}])
def test_label_space_from_json_refuses_other_fields(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match="is no label space"):
        LabelSpace.from_json({"task": "regression", "classes": ["a", "b"], "scale": "metric", **wrong})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mean": [0, 1], "std": [1, 0]}, "std of channel 1 is 0, not a finite number above 0"),
        ({"mean": [0, 1], "std": [-2.0, 1]}, "std of channel 0 is -2.0"),
        ({"mean": [float("nan"), 1], "std": [1, 1]}, "mean of channel 0 is nan, not a finite number"),
        ({"mean": [0, 1], "std": [float("inf"), 1]}, "std of channel 0 is inf"),
    ],
)
def test_label_space_from_json_refuses_statistics_that_cannot_be(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        LabelSpace.from_json({"task": "regression", "classes": ["a", "b"], "scale": "metric", **wrong})


def test_encode_keeps_all_numbers_and_sums_them_up() -> None:
    value = random_value(0)
    row = LABEL.encode(value)
    np.testing.assert_array_equal(LABEL.decode(row)["values"], value["values"])
    for channel, numbers in enumerate(np.moveaxis(value["values"], -1, 0)):
        found = [row[name][channel] for name in ("mean", "least", "most")]
        np.testing.assert_allclose(found, [np.nanmean(numbers), np.nanmin(numbers), np.nanmax(numbers)], rtol=1e-5)
    assert row["unknown"] == pytest.approx(np.isnan(value["values"]).mean())


def test_crop_and_flip_move_the_numbers_of_aligned_arrays() -> None:
    value = random_value(1, (4, 6))
    np.testing.assert_array_equal(LABEL.flip(value)["values"], value["values"][:, ::-1])
    beyond = LABEL.crop(value, (0.5, 0.0, 1.5, 1.0), (4, 6))["values"]
    np.testing.assert_array_equal(beyond[:, :3], value["values"][:, 3:])
    assert np.isnan(beyond[:, 3:]).all()


def test_crop_and_flip_leave_arrays_that_are_not_aligned() -> None:
    label, values = TaskLabel(SOUND), np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    assert label.flip({"values": values})["values"] is values
    np.testing.assert_array_equal(label.crop({"values": values}, (0.5, 0.5, 2.0, 2.0), (3, 4))["values"], values)
    assert label.describe_at({"values": values}, (0.1, 0.1)) == ""


def test_describe_states_ranges_and_numbers_in_the_unit() -> None:
    value = {"values": np.full((2, 2, 2), 3.5, np.float32)}
    value["values"][0, 0, 1] = np.nan
    assert LABEL.describe(value) == "height 3.5 to 3.5 m, slope 3.5 to 3.5 m"
    assert LABEL.describe_at(value, (0, 0)) == "height 3.5 m"


def test_draw_shows_first_channel_or_the_first_three() -> None:
    ramp = np.linspace(0, 1, 30, dtype=np.float32).reshape(5, 6, 1)
    image = Image.new("RGB", (60, 50))
    one = np.asarray(LABEL.draw_plain(image, {"values": np.concatenate([ramp, -ramp], axis=-1)}))
    assert one[-1, -1].tolist() == [253, 231, 37], "yellow is high"
    three = TaskLabel(LabelSpace("regression", ("a", "b", "c", "d")))
    drawn = np.asarray(three.draw_plain(image, {"values": np.concatenate([ramp, -ramp, 0 * ramp, ramp], axis=-1)}))
    assert (drawn[0, 0].tolist(), drawn[-1, -1].tolist()) == ([0, 255, 0], [255, 0, 0])


def test_distance_is_in_deviations_of_the_label_space_or_else_a_share_of_the_range() -> None:
    flat, near, far = ({"values": np.full((2, 2, 2), number, np.float32)} for number in (3.0, 3.1, 90.0))
    assert LABEL.distance(flat, near) == pytest.approx((0.1 / 20 + 0.1 / 0.5) / 2, rel=1e-4)
    assert LABEL.distance(flat, far) == 1
    assert LABEL.distance(flat, flat) == 0
    ramp = {"values": np.array([[[0.0], [10.0]]], np.float32)}
    moved = {"values": np.array([[[5.0], [10.0]]], np.float32)}
    assert TaskLabel(SOUND).distance(ramp, moved) == pytest.approx(0.25)


def test_loss_is_the_mean_absolute_error_in_deviations() -> None:
    values = [random_value(seed, (8, 8)) for seed in range(2)]
    output = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = TASK.loss(output, TASK.collate(values))
    loss.backward()
    truth = (np.stack([value["values"] for value in values]) - SPACE.mean) / SPACE.std
    wrong = np.abs(output.detach().numpy().transpose(0, 2, 3, 1) - truth)
    assert float(loss.detach()) == pytest.approx(np.nanmean(wrong), rel=1e-5)
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


def test_predict_is_in_the_unit() -> None:
    found = TASK.predict(torch.zeros(1, 2, 3, 3))["values"]
    np.testing.assert_allclose(found[0, 1, 1], SPACE.mean)
    np.testing.assert_allclose(TASK.predict(torch.ones(1, 2, 3, 3))["values"][0, 1, 1], [120, 0.5])


def test_fit_space_measures_training_labels() -> None:
    values = [random_value(seed, (5 + seed, 7)) for seed in range(4)]
    fitted = TASK.fit_space(iter(values))
    flat = np.concatenate([value["values"].reshape(-1, 2) for value in values])
    np.testing.assert_allclose(fitted.mean, np.nanmean(flat, axis=0), rtol=1e-5)
    np.testing.assert_allclose(fitted.std, np.nanstd(flat, axis=0), rtol=1e-5)
    constant = TASK.fit_space([{"values": np.full((2, 2, 2), 7.1, np.float32)}])
    assert constant.std == (1.0, 1.0), "a channel that does not vary is not divided by what rounding leaves"


def test_fit_space_refuses_labels_without_a_known_number() -> None:
    for values in ([], [{"values": np.full((2, 2, 2), np.nan, np.float32)}]):
        with pytest.raises(DataError, match="labels of height, slope have no known number"):
            TASK.fit_space(values)


def test_fitted_space_draws_among_the_images_with_a_label_of_the_head(
    make_dataset_shard: Callable[..., DatasetShard], noise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STATISTICS_IMAGES", 2)
    values = [{"values": np.full((2, 2, 2), number, np.float32)} for number in (3, 5)]
    labels = {"few": (LABEL, [*[None] * 18, *values]), "all": (LABEL, [random_value(0)] * 20)}
    dataset = ImageDataset([make_dataset_shard("s", [noise(number) for number in range(20)], labels)])
    fitted = training.fitted_space(SPACE, dataset, "few")
    assert (fitted.mean, fitted.std) == ((4, 4), (1, 1))


def test_metrics_agree_with_scikit_learn_over_known_numbers() -> None:
    metric, pairs = TASK.metrics(), [(random_value(seed, unknown=0), random_value(seed + 9)) for seed in range(3)]
    for predicted, true in pairs:
        metric.update(predicted, true)
    guess, truth = (np.concatenate([pair[part]["values"].reshape(-1, 2) for pair in pairs]) for part in (0, 1))
    known = [~np.isnan(truth[:, channel]) for channel in range(2)]
    for name, score in (("r2", r2_score), ("mae", mean_absolute_error), ("rmse", root_mean_squared_error)):
        found = [score(truth[rows, channel], guess[rows, channel]) for channel, rows in enumerate(known)]
        assert metric.compute()[name] == pytest.approx(np.mean(found), rel=1e-6)
        assert [each.values[name] for each in metric.compute_by_class().values()] == pytest.approx(found, rel=1e-6)


def test_metrics_of_a_truth_that_does_not_vary() -> None:
    flat, other = {"values": np.full((2, 2, 2), 3.3, np.float32)}, {"values": np.full((2, 2, 2), 3.4, np.float32)}
    right, wrong = TASK.metrics(), TASK.metrics()
    right.update(flat, flat)
    wrong.update(other, flat)
    assert (right.compute()["r2"], wrong.compute()["r2"]) == (1, 0)


def test_constant_label_has_an_r2_of_0() -> None:
    values = [random_value(seed) for seed in range(3)]
    metric, guess = TASK.metrics(), TASK.constant_label(iter(values))
    for value in values:
        metric.update(guess, value)
    assert guess["values"].shape == (1, 1, 2)
    assert metric.compute()["r2"] == pytest.approx(0, abs=1e-6)


def test_constant_label_of_arrays_that_are_not_aligned_is_their_mean() -> None:
    task, steps = TaskModel(SOUND), np.arange(GRID, dtype=np.float32)[:, None, None].repeat(GRID, 1)
    guess = task.constant_label([{"values": steps}, {"values": steps + 2}])["values"]
    np.testing.assert_allclose(guess, steps + 1)


def test_array_head_predicts_arrays_whole_from_the_vector() -> None:
    task = TaskModel(SOUND)
    head = task.head(FeatureInfo(8, 8, 64))
    assert task.reads == "vector"
    assert TASK.reads == "fused"
    prediction = to_numpy(task.predict(head(Features(torch.randn(2, 8))).detach()))
    assert task.value(prediction, 0, Placement((40, 20), (64, 32)))["values"].shape == (16, 16, 1), (
        "padding cuts nothing"
    )
