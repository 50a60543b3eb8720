"""Test the step that probes frozen features: what probes are given, and the records."""

from __future__ import annotations

import dataclasses
import sys
import threading
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from evaluation import corruptions
from evaluation.corruptions import CORRUPTIONS
from evaluation.measurement import Measurement
from evaluation.probe import ProbeData, ProbeResult
from evaluation.probes import linear_hpt
from pipeline.data.augment import AugmentParams, transform_image
from pipeline.data.decode import decode_image
from pipeline.errors import ConfigError, Stopped
from tasks.classification.label import TaskLabel
from tests.evaluation.measuring import COLOURS, Bench, MakeKinds, Record, keys_of, records_of, scratch


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[ProbeData]:
    """Add a probe `spy` that always answers the first class; return the data that each call is given."""
    given: list[ProbeData] = []

    def fit(data: ProbeData) -> ProbeResult:
        given.append(data)
        first = torch.eye(data.classes)[:1]
        return ProbeResult(lambda features: first.expand(len(features), -1), {"first": 1})

    spy = types.ModuleType("evaluation.probes.spy")
    about = {"VERSION": 7, "READS": "vector", "LABEL": TaskLabel, "ABOUT": "everything is of the first class"}
    spy.__dict__.update(about, RANDOM=False, fit=fit)
    monkeypatch.setitem(sys.modules, spy.__name__, spy)
    return given


@pytest.fixture
def quick_hpt(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"steps": 4, "batch": 6, "lr": 0.1}
    monkeypatch.setattr(linear_hpt, "SETTINGS", linear_hpt.SETTINGS.model_copy(update=few))


def accuracies(records: Sequence[Record]) -> dict[tuple[str, int, int], float]:
    return {(record["protocol"], record["labels"], record["seed"]): record["value"] for record in records}


def test_probe_record_has_protocol_images_and_settings(bench: Bench) -> None:
    linear, knn = bench.probe("linear", "knn", on="colours", seed=3)
    about = {field.name for field in dataclasses.fields(Measurement)} - {"trained_on_labels"}
    assert set(linear) == set(knn) == about
    assert {key: linear[key] for key in ("start", "backbone", "protocol", "dataset", "task", "split")} == {
        "start": "scratch",
        "backbone": "test_resnet",
        "protocol": "linear v1",
        "dataset": "colours",
        "task": "classification",
        "split": "test",
    }
    assert (linear["n"], linear["asked"], linear["labels"], linear["seed"]) == (9, "all", 18, 3)
    assert (linear["metric"], linear["better"], linear["value"]) == ("accuracy", "higher", 1.0)
    assert (knn["protocol"], knn["value"], knn["settings"]) == ("knn v1", 1.0, {"neighbours": 18})
    assert linear["steps"] is linear["images"] is linear["seconds"] is None, "nothing was trained step by step"


def test_probe_accuracy_is_on_the_test_images(bench: Bench, seen: list[ProbeData]) -> None:
    [record] = bench.probe("spy", on="colours")
    assert record["value"] == pytest.approx(1 / 3)
    assert (record["protocol"], record["about"]) == ("spy v7", "everything is of the first class")


def test_probe_data_has_the_labels_asked_for(bench: Bench, seen: list[ProbeData]) -> None:
    records = bench.probe("spy", on="colours", labels=[6, 0.5, "all"], seeds=2, seed=5)
    assert [(record["asked"], record["labels"], record["seed"]) for record in records] == [
        (6, 6, 5),
        (6, 6, 6),
        (0.5, 9, 5),
        (0.5, 9, 6),
        ("all", 18, 5),
    ], "nothing is drawn of all labels: another seed comes to the same"
    assert [len(data.train.features) for data in seen] == [6, 6, 9, 9, 18]
    for data in seen:
        counts = torch.bincount(data.train.classes, minlength=3).tolist()
        assert counts == [len(data.images) // 3] * 3
        assert len(data.val.classes) == 6
        assert len(data.images) == len(data.train.features)
    few, other, more, _, _ = (keys_of(data.images) for data in seen)
    assert few < more
    assert few != other


def test_probe_without_a_validation_split_takes_a_part_of_the_labels(
    bench: Bench, seen: list[ProbeData], make_kinds: MakeKinds
) -> None:
    splits = {"train": range(5), "test": range(10, 12)}
    bench.sets["kinds"] = make_kinds({f"{split}/{kind}": each for split, each in splits.items() for kind in COLOURS})
    [record] = bench.probe("spy", on="kinds", labels=[10])
    [data] = seen
    assert (len(data.train.classes), len(data.val.classes), record["labels"], record["n"]) == (8, 2, 10, 6)
    same = (data.val.features[:, None] == data.train.features[None]).all(2)
    assert not same.any(), "what decides is not learned from"


def test_probe_features_are_those_of_the_start(bench: Bench, seen: list[ProbeData]) -> None:
    """Features are of whole images, with running statistics."""
    bench.probe("spy", on="colours", seed=1)
    [data] = seen
    backbone, images = data.backbone.eval(), data.images
    whole = np.stack([transform_image(decode_image(images.read(at)[1]), AugmentParams(), 32) for at in range(18)])
    with torch.no_grad():
        wanted = backbone(torch.from_numpy(whole).permute(0, 3, 1, 2).float() / 255)
    nearest = torch.cdist(data.train.features, wanted).min(0)
    assert sorted(nearest.indices.tolist()) == list(range(18)), "of every image, in the order of the draw"
    assert nearest.values.max() < 1e-4


def test_probe_measures_on_corrupted_images_and_trains_on_clean_ones(bench: Bench, seen: list[ProbeData]) -> None:
    plain = bench.probe("linear", on="colours")
    records = bench.probe("linear", "spy", on="colours", corruptions=True)
    found = {record["corruption"]: record for record in records if record["protocol"] == "linear v1"}
    assert set(found) == {"none", "all", *CORRUPTIONS}
    assert found["none"] == plain[0]
    values = [found[name]["value"] for name in CORRUPTIONS]
    assert min(values) < 1, "some are too much for a random backbone"
    assert found["all"]["value"] == pytest.approx(sum(values) / len(values))
    assert corruptions.ABOUT in found["all"]["about"]
    assert corruptions.ABOUT not in found["none"]["about"]
    assert len(seen) == 1, "nothing is learned again for them"


def test_probe_skips_a_set_without_held_out_labels_with_a_reason(bench: Bench, make_kinds: MakeKinds) -> None:
    bench.sets["kinds"] = make_kinds({"train/a": [1], "train/b": [2]})
    config = {"name": "probe.it", "start": scratch(), "probes": ["knn"], **bench.common("kinds")}
    made = bench.run("evaluation.probing:probe", {"data.kinds": bench.sets["kinds"]}, config)
    assert records_of(made) == []
    assert made.counts == {"records": 0, "why": "no held-out image has a label for 'classification'"}


def test_probe_refuses_more_labels_than_there_are(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="labels: 19 labelled images asked for; colours has 18 to learn from"):
        bench.probe("knn", on="colours", labels=[19])


@pytest.mark.usefixtures("quick_hpt")
def test_probe_trains_from_new_for_every_number_of_labels(bench: Bench) -> None:
    """Checkpoints of one training are not resumed by the next."""
    together = accuracies(bench.probe("linear_hpt", on="colours", labels=[3, "all"], seeds=2, corruptions=False))
    alone = accuracies(bench.probe("linear_hpt", on="colours", labels=["all"], seeds=2))
    assert set(together) == {("linear_hpt v2", count, seed) for count in (3, 18) for seed in (0, 1)}
    layers = trained_layers(bench, [3, "all"])[1:], trained_layers(bench, ["all"])
    assert torch.equal(layers[0][0], layers[1][0])
    assert alone.items() <= together.items()


def trained_layers(bench: Bench, labels: list[Any]) -> list[torch.Tensor]:
    """Return the answers of layers trained on these numbers of labels."""
    said = []
    really = linear_hpt.fit

    def fit(data: ProbeData) -> ProbeResult:
        solution = really(data)
        said.append(solution.classify(torch.linspace(-1, 1, 5 * data.backbone.width).view(5, -1)))
        return solution

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_hpt, "fit", fit)
        bench.probe("linear_hpt", on="colours", labels=labels, name=f"probe.{len(labels)}")
    return said


def test_probe_stops_when_asked(bench: Bench) -> None:
    stop = threading.Event()
    stop.set()
    config = {"name": "probe.it", "start": scratch(), "probes": ["knn"], **bench.common("colours")}
    with pytest.raises(Stopped):
        bench.run("evaluation.probing:probe", {"data.colours": bench.sets["colours"]}, config, stop=stop)
