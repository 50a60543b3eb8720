"""Probes that read maps: dense tasks by a linear layer, boxes by a detector, on a backbone that stays as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import tasks
from evaluation.dense_probe import DenseProbeData, LabelledMaps, score_on_maps, train_on_maps
from evaluation.linear_layer import DenseLinear, channel_statistics
from evaluation.probes import detector, linear_dense
from pipeline.errors import ConfigError
from pipeline.models import features
from pipeline.recipe.base import FitConfig
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace
from pipeline.training import autotune
from pipeline.training.autotune import ComputeConfig
from tests.evaluation.measuring import Bench, Record, noise_of, read_set, scratch

DENSE = {"segmentation", "depth", "normals"}
DEPTH = tasks.model(LabelSpace("depth"))
SIDE = 32


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in (linear_dense, detector):
        monkeypatch.setattr(probe, "SETTINGS", probe.SETTINGS.model_copy(update={"steps": 3, "batch": 4}))


def probed(bench: Bench, *probes: str, **config: Any) -> list[Record]:
    return bench.probe(*probes, on="scenes", start=scratch(size=64), width=8, proposals=8, **config)


@pytest.mark.usefixtures("few_steps")
def test_probe_measures_every_task_that_its_probes_learn(bench: Bench) -> None:
    records = probed(bench, "knn", "linear_dense", "detector", labels=[8, "all"])
    leading = {"classification": "accuracy", "detection": "ap", "segmentation": "miou", "normals": "mean_angle"}
    leading["depth"] = "delta_1.25"
    for task, metric in leading.items():
        found = [record for record in records if record["task"] == task]
        protocol = {"classification": "knn v1", "detection": "detector v2"}.get(task, "linear_dense v1")
        assert {record["protocol"] for record in found} == {protocol}
        assert [(record["labels"], record["n"]) for record in found if record["metric"] == metric] == [(8, 5), (12, 5)]
    assert {record["steps"] for record in records if record["task"] != "classification"} == {3}


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("probe", ["linear_dense", "detector"])
def test_dense_probe_is_deterministic_by_seed(bench: Bench, probe: str) -> None:
    first, second = (probed(bench, probe, name=f"probe.{number}") for number in (1, 2))
    for one, other in zip(first, second, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.usefixtures("few_steps")
def test_dense_probe_measures_on_corrupted_images(bench: Bench) -> None:
    records = [record for record in probed(bench, "linear_dense", corruptions=True) if record["metric"] == "miou"]
    found = {record["corruption"]: record["value"] for record in records}
    singles = [value for name, value in found.items() if name not in ("none", "all")]
    assert found["all"] == pytest.approx(sum(singles) / len(singles))


@pytest.mark.usefixtures("few_steps")
def test_probe_reads_and_learns_in_bfloat16(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH", 4)
    monkeypatch.setattr(autotune, "autotune", lambda *_: ComputeConfig("cpu", "bf16", True, {}))
    records = probed(bench, "linear", "linear_dense", "detector")
    assert {record["task"] for record in records} == {"classification", "detection", *DENSE}


@pytest.mark.usefixtures("few_steps")
def test_dense_probing_standardizes_regression_by_the_labels_of_each_trial(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        split = "test" if number < 4 else "train"
        for folder in ("images", "arrays"):
            (tmp_path / f"fields/{folder}/{split}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise_of(number, "dark")).save(tmp_path / f"fields/images/{split}/{number}.png")
        np.save(tmp_path / f"fields/arrays/{split}/{number}.npy", np.full((4, 4), 2.0**number))
    folders = {"images": "images/{split}", "arrays": "arrays/{split}"}
    bench.sets["fields"] = read_set(
        Root.of(tmp_path / "root"), "fields", kind="rasters", path=str(tmp_path / "fields"), **folders
    )
    fit = mock.Mock(wraps=linear_dense.fit)
    monkeypatch.setattr(linear_dense, "fit", fit)
    bench.probe("linear_dense", on="fields", start=scratch(), width=8, proposals=8, labels=[3, "all"])
    trials = [call.args[0] for call in fit.call_args_list]
    assert len(trials) == 2
    for trial in trials:
        learned = np.mean([value["values"] for value in trial.train.values])
        assert trial.task.space.mean == pytest.approx((learned,))


def maps_of(count: int, seed: int = 0) -> LabelledMaps:
    """Return maps of two strides, and depths whose logarithm is a linear function of them."""
    rng = torch.Generator().manual_seed(seed)
    fine, coarse = torch.randn(count, 3, 4, 4, generator=rng), torch.randn(count, 2, 2, 2, generator=rng)
    parts = [F.interpolate(each[:, :1], size=(8, 8), mode="bilinear") for each in (fine, coarse)]
    log = torch.stack(parts).sum(dim=0)
    depths = [{"depth": one.numpy().astype(np.float32)} for one in (0.2 * log[:, 0] + 1).exp()]
    names = [str(number) for number in range(count)]
    return LabelledMaps(names, SIDE, [5 * fine.half() + 3, coarse.half()], depths, [(SIDE, SIDE)] * count)


@pytest.fixture
def data(runtime: Runtime, tmp_path: Path) -> DenseProbeData:
    train, val = maps_of(24), maps_of(8, seed=1)
    about: dict[str, Any] = {"strides": [8, 16], "channels": [3, 2], "width": 8, "proposals": 8}
    return DenseProbeData("probe", DEPTH, train, val, **about, seed=0, scratch=tmp_path, runtime=runtime)


def test_linear_dense_learn_a_linear_function_of_the_maps(
    data: DenseProbeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = linear_dense.fit(data)
    unseen = maps_of(8, seed=2)
    assert score_on_maps(found.module, DEPTH, unseen)["abs_rel"] < 0.02
    constant = [torch.zeros_like(level) for level in unseen.maps]
    assert score_on_maps(found.module, DEPTH, dataclasses.replace(unseen, maps=constant))["abs_rel"] > 0.1
    assert found.settings["lr"] in linear_dense.RATES
    assert (found.cost.steps, found.cost.images) == (linear_dense.STEPS, 16 * linear_dense.STEPS)
    monkeypatch.setattr(linear_dense, "RATES", (1e-6, 1e-2))
    assert linear_dense.fit(dataclasses.replace(data, scratch=data.scratch / "b")).settings["lr"] == 1e-2, "the better"


def test_dense_linear_is_linear_and_standardized(data: DenseProbeData) -> None:
    layer = DenseLinear(DEPTH, data.train.maps, SIDE)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    one, other = ([level[rows].float() for level in data.train.maps] for rows in (slice(0, 4), slice(4, 8)))
    middle = [(a + b) / 2 for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(layer(middle), (layer(one) + layer(other)) / 2, atol=1e-4, rtol=1e-4)
    scaled = DenseLinear(DEPTH, [7 * level.float() - 2 for level in data.train.maps], SIDE)
    scaled.load_state_dict({**scaled.state_dict(), **dict(layer.named_parameters())})
    torch.testing.assert_close(scaled([7 * level - 2 for level in one]), layer(one), atol=1e-2, rtol=1e-2)


def test_channel_statistics_of_large_half_precision_maps_are_finite() -> None:
    level = (torch.randn(200, 2, 16, 16) * 300 + torch.tensor([1e4, -1e4]).view(1, 2, 1, 1)).half()
    mean, std = channel_statistics(level)
    torch.testing.assert_close(mean, torch.tensor([1e4, -1e4]), rtol=1e-2, atol=0)
    torch.testing.assert_close(std, torch.tensor([300.0, 300.0]), rtol=0.1, atol=0)


def test_dense_linear_refuses_a_task_that_is_not_dense(data: DenseProbeData) -> None:
    boxes = tasks.model(LabelSpace("detection", ("a",)))
    with pytest.raises(ConfigError, match="task 'detection' has no dense head"):
        DenseLinear(boxes, data.train.maps, SIDE)


def test_score_on_maps_does_not_depend_on_the_batch(data: DenseProbeData, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = DenseLinear(DEPTH, data.train.maps, SIDE)
    train_on_maps(layer, data, FitConfig(steps=3, batch=4))
    whole = score_on_maps(layer, DEPTH, data.train)
    monkeypatch.setattr("evaluation.dense_probe.BATCH", 5)
    assert score_on_maps(layer, DEPTH, data.train) == pytest.approx(whole)
