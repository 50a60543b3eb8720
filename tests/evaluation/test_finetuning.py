"""Test fine-tuning: how settings are chosen, what is kept when it is stopped, and what is reused."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation import finetuning
from evaluation.corruptions import CORRUPTIONS
from evaluation.finetuning import build_finetuning_network
from evaluation.schedules import SCHEDULES, FinetuneSchedule
from pipeline.data.dataset import ImageDataset
from pipeline.errors import ConfigError, Stopped
from pipeline.models.initial import InitialBackbone, random_backbone
from pipeline.recipe.augment import AugmentConfig
from pipeline.steps.artifact import Artifact
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace
from pipeline.training.autotune import ComputeConfig
from pipeline.training.fit import FitResult
from tasks.prediction import Predictor
from tasks.training import TrainingResult
from tests.evaluation.conftest import TASKS
from tests.evaluation.measuring import COLOURS, Bench, MakeKinds, Record, keys_of, records_of

RATES = (1e-3, 3e-2)
LEADING = {
    "classification": "accuracy",
    "detection": "ap",
    "segmentation": "miou",
    "depth": "delta_1.25",
    "normals": "mean_angle",
}


def grid(images: int, there: int) -> Sequence[Mapping[str, Any]]:
    return [{"batch": 4, "steps": 2, "lr": lr} for lr in RATES]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a schedule of two steps with one of two learning rates."""
    monkeypatch.setitem(SCHEDULES, "tiny", FinetuneSchedule(3, "two steps", grid, AugmentConfig()))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace training by a stub, and return what it was called with."""
    seen: list[dict[str, Any]] = []

    def train(network: Any, combine: Any, dataset: ImageDataset, plan: Any, runtime: Any) -> TrainingResult:
        seen.append({"keys": keys_of(dataset), "seed": plan.seed, "lr": plan.fit.lr, "network": network})
        return TrainingResult(ComputeConfig("cpu", "32", False, {}), 1, FitResult([], 100 * plan.fit.lr, 0.0, 1))

    monkeypatch.setattr(finetuning, "train_network", train)
    return seen


def decide(monkeypatch: pytest.MonkeyPatch, metric: str, by_rate: Mapping[float, float], trained: list[Any]) -> None:
    """Score networks on validation images by their learning rates, and with 0.5 on all others."""

    def score(predictor: Predictor, dataset: ImageDataset, head: str, runtime: Any) -> dict[str, float]:
        [rate] = [each["lr"] for each in trained if each["network"] is predictor.network]
        names = predictor.heads[head].better
        return {name: by_rate[rate] if name == metric and len(dataset) == 4 else 0.5 for name in names}

    monkeypatch.setattr(finetuning, "score", score)


def rate(record: Record) -> float:
    found: float = record["settings"]["lr"]
    return found


def test_finetune_measures_all_tasks_by_all_metrics(bench: Bench) -> None:
    made = bench.tune("scenes")
    records = records_of(made)
    found = {task: [each for each in records if each["task"] == task] for task in TASKS}
    assert sum(map(len, found.values())) == len(records) == made.counts["records"]
    assert {task: each[0]["metric"] for task, each in found.items()} == LEADING, "the leading metric comes first"
    for record in records:
        assert math.isfinite(record["value"])
        assert (record["n"], record["labels"], record["split"], record["seed"]) == (5, 12, "test", 0)
        assert (record["protocol"], record["about"], record["start"]) == ("finetune tiny v3", "two steps", "scratch")
        assert (record["steps"], record["images"], record["backbone"]) == (2, 8, "test_resnet")
        assert record["seconds"] >= 0
    assert {each["better"] for each in found["normals"]} == {"lower", "higher"}
    assert made.counts["trained"] == len(TASKS) * len(RATES)


@pytest.mark.parametrize(("best", "by_rate"), [(0.03, {1e-3: 0.2, 3e-2: 0.8}), (0.001, {1e-3: 0.8, 3e-2: 0.2})])
def test_finetune_reports_the_best_on_validation(
    best: float, by_rate: dict[float, float], bench: Bench, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, "miou", by_rate, trained)
    records = [each for each in records_of(bench.tune("scenes")) if each["task"] == "segmentation"]
    assert {rate(record) for record in records} == {best}
    assert {record["value"] for record in records} == {0.5}, "and not with what decided"
    assert {record["seconds"] for record in records} == {100 * best}, "what its training took"


@pytest.mark.parametrize(("best", "by_rate"), [(0.001, {1e-3: 20.0, 3e-2: 80.0}), (0.03, {1e-3: 80.0, 3e-2: 20.0})])
def test_finetune_takes_the_lowest_of_a_metric_that_is_better_lower(
    best: float, by_rate: dict[float, float], bench: Bench, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, "mean_angle", by_rate, trained)
    records = [each for each in records_of(bench.tune("scenes")) if each["task"] == "normals"]
    assert {rate(record) for record in records} == {best}


def test_finetune_takes_the_first_seeds_settings_for_the_others(
    bench: Bench, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings are chosen for every number of labels."""
    best = {6: 3e-2, 18: 1e-3}

    def score(predictor: Predictor, dataset: ImageDataset, head: str, runtime: Any) -> dict[str, float]:
        [about] = [each for each in trained if each["network"] is predictor.network]
        return {"accuracy": float(about["lr"] == best[len(about["keys"])])}

    monkeypatch.setattr(finetuning, "score", score)
    records = records_of(bench.tune("colours", labels=[6, "all"], seeds=3))
    assert [(each["asked"], each["seed"], rate(each)) for each in records] == [
        *((6, seed, 3e-2) for seed in range(3)),
        *(("all", seed, 1e-3) for seed in range(3)),
    ]
    assert [each["lr"] for each in trained] == [*RATES, 3e-2, 3e-2, *RATES, 1e-3, 1e-3]
    assert [each["seed"] for each in trained] == [0, 0, 1, 2] * 2
    few, _, other, *_ = (each["keys"] for each in trained)
    assert few != other, "every seed has labels of its own"


def test_finetune_without_a_validation_split_takes_a_fifth_of_the_labels(
    bench: Bench, trained: list[Any], make_kinds: MakeKinds, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"train": range(5), "test": range(10, 12)}
    bench.sets["kinds"] = make_kinds({f"{split}/{kind}": each for split, each in splits.items() for kind in COLOURS})
    scored = []

    def score(predictor: Predictor, dataset: ImageDataset, head: str, runtime: Any) -> dict[str, float]:
        scored.append(keys_of(dataset))
        return {"accuracy": 0.5}

    monkeypatch.setattr(finetuning, "score", score)
    [record] = records_of(bench.tune("kinds", labels=[10]))
    deciding, again, reported = scored
    assert deciding == again
    assert (len(deciding), len(reported), record["labels"], record["n"]) == (2, 6, 10, 6)
    assert [len(each["keys"]) for each in trained] == [8, 8]
    assert not trained[0]["keys"] & (deciding | reported)
    assert not deciding & reported


def test_finetune_keeps_finished_trials_when_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench.tune("colours", seeds=3, root=Root.of(Path(bench.runtime.root.path).parent / "other"))
    assert whole.counts["trained"] == 4
    stop, kept = threading.Event(), []
    really_keep = finetuning._Finetuning._save

    def keep(tuning: Any, name: str, records: Any) -> None:
        really_keep(tuning, name, records)
        kept.append(name)
        stop.set()

    monkeypatch.setattr(finetuning._Finetuning, "_save", keep)
    with pytest.raises(Stopped):
        bench.tune("colours", seeds=3, stop=stop)
    assert kept == ["classification-all-0"]
    again = bench.tune("colours", seeds=3)
    assert again.counts["trained"] == 2, "the first seed's two settings are known"
    assert kept[1:] == ["classification-all-1", "classification-all-2"]
    assert timeless(again) == timeless(whole)


def timeless(made: Artifact) -> list[Record]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records_of(made)]


def test_finetune_adds_seeds_and_labels_to_earlier_records(bench: Bench) -> None:
    first = bench.tune("colours", seeds=1)
    more = bench.tune("colours", seeds=2)
    assert (first.counts["trained"], more.counts["trained"]) == (2, 1)
    assert records_of(more)[0] == records_of(first)[0]
    few = bench.tune("colours", seeds=2, labels=[6, "all"])
    assert few.counts["trained"] == 3
    assert [(each["asked"], each["seed"]) for each in records_of(few)] == [(6, 0), (6, 1), ("all", 0), ("all", 1)]
    assert records_of(few)[2:] == records_of(more)
    less = bench.tune("colours", labels=[6])
    assert less.counts["trained"] == 0
    assert records_of(less) == records_of(few)[:1]


def test_finetune_does_not_reuse_records_of_other_images(bench: Bench, make_kinds: MakeKinds) -> None:
    bench.tune("colours", seeds=1)
    there = {"train": range(1, 7), "val": range(10, 12), "test": range(20, 23)}
    bench.sets["colours"] = make_kinds({f"{split}/{kind}": each for split, each in there.items() for kind in COLOURS})
    assert bench.tune("colours", seeds=2).counts["trained"] == 3


def test_finetune_does_not_reuse_records_of_other_settings(bench: Bench) -> None:
    bench.tune("colours", seeds=1)
    assert bench.tune("colours", seeds=2, seed=1).counts["trained"] == 3


def test_finetune_measures_corrupted_images_with_the_same_networks(bench: Bench) -> None:
    made = bench.tune("colours", corruptions=True)
    assert made.counts["trained"] == 2
    found = {record["corruption"]: record["value"] for record in records_of(made)}
    assert set(found) == {"none", "all", *CORRUPTIONS}
    assert found["all"] == pytest.approx(sum(found[name] for name in CORRUPTIONS) / len(CORRUPTIONS))
    assert found["none"] == records_of(bench.tune("colours"))[0]["value"]


def test_finetune_refuses_more_labels_than_there_are_before_training(bench: Bench, trained: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"labels: 13 labelled images asked for; scenes has 12 to learn from"):
        bench.tune("scenes", labels=["all", 13])
    assert not trained


# What is fine-tuned


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_build_finetuning_network_takes_all_weights_and_statistics_of_the_backbone(backbone: str, task: str) -> None:
    torch.manual_seed(5)
    about = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    start = InitialBackbone(backbone, 32, about, random_backbone(backbone, 32).build().model.state_dict())
    assert start.weights
    network = build_finetuning_network(
        start, {"it": LabelSpace(task, ("a", "b"))}, {"width": 16, "proposals": 8}, False, 0
    )
    there = network.backbone.model.state_dict()
    assert there.keys() == start.weights.keys()
    assert all(torch.equal(tensor, start.weights[name]) for name, tensor in there.items())
    torch.testing.assert_close(network.backbone.mean.flatten(), 255 * torch.tensor(about[0]))
    torch.testing.assert_close(network.backbone.std.flatten(), 255 * torch.tensor(about[1]))


def heads_of(blank: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    spaces = {task: LabelSpace(task, ("a", "b")) for task in ("classification", "segmentation")}
    network = build_finetuning_network(
        random_backbone("test_resnet", 32), spaces, {"width": 16, "proposals": 8}, blank, seed
    )
    return dict(network.heads.state_dict())


def test_build_finetuning_network_blank_starts_a_linear_head_from_zeros() -> None:
    blank, usual = heads_of(blank=True), heads_of(blank=False)
    assert usual["classification.weight"].abs().sum() > 0
    assert blank["classification.weight"].abs().sum() == blank["classification.bias"].abs().sum() == 0
    dense = [name for name in blank if name.startswith("segmentation") and name.endswith("weight")]
    assert all(torch.equal(blank[name], usual[name]) for name in dense), "other heads could not learn from zeros"
    assert not torch.equal(heads_of(blank=False, seed=1)["classification.weight"], usual["classification.weight"])


# The schedules


def test_hpt_schedule_has_the_published_grid() -> None:
    """Two learning rates, a hundred times as high for the head, by two lengths: 2,500 steps with drops at 833 and
    1,667, and 90 epochs with drops at 30 and 60.
    """
    found = SCHEDULES["hpt"].grid(1000, 50_000)
    rates = {(each["lr"] * each["backbone_lr"], each["lr"], each.get("steps"), each.get("epochs")) for each in found}
    assert rates == {(0.01, 1.0, 2500, None), (0.01, 1.0, None, 90), (0.001, 0.1, 2500, None), (0.001, 0.1, None, 90)}
    assert len(found) == 4
    for each in found:
        assert (each["optimizer"], each["batch"], each["weight_decay"], each["warmup"]) == ("sgd", 256, 0.0, 0.0)
        assert [round(share * 2500) for share in each["drops"]] == [833, 1667]
        assert [share * 90 for share in each["drops"]] == pytest.approx([30, 60])
        assert each["clip"] is None
    assert not SCHEDULES["hpt"].blank_head


@pytest.mark.parametrize(("images", "epochs"), [(100, 60), (499, 60), (500, 30), (1000, 30)])
def test_suncet_schedule_is_twice_as_long_for_few_labels(images: int, epochs: int) -> None:
    """60 epochs of 1 % of the labels, 30 of 10 %; the head begins with zeros."""
    [found] = SCHEDULES["suncet"].grid(images, 10_000)
    assert found["epochs"] == epochs
    assert (found["optimizer"], found["nesterov"], found["lr"], found["batch"]) == ("sgd", True, 0.05, 256)
    assert (found["weight_decay"], found["warmup"], found["clip"]) == (0.0, 0.0, None)
    assert SCHEDULES["suncet"].blank_head


def test_published_schedules_crop_and_flip_without_color_jitter() -> None:
    for name in ("hpt", "suncet"):
        augment = SCHEDULES[name].augment
        assert (augment.brightness, augment.contrast, augment.saturation) == (0, 0, 0)
        assert augment.area < 1
        assert dataclasses.replace(SCHEDULES[name], version=9) != SCHEDULES[name]


def test_quick_schedule_is_longer_for_more_images() -> None:
    few, many = SCHEDULES["quick"].grid(20, 20), SCHEDULES["quick"].grid(3200, 3200)
    assert {each["steps"] for each in few} == {300}
    assert {each["steps"] for each in many} == {2000}
    assert [each["lr"] for each in few] == [1e-3, 3e-4]
