"""A stage as a step of a run: its initial backbone, its images, how it resumes, and its artifact."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import timm
import torch

from evaluation.comparison.cost import artifact_cost
from ingest.dataset import IngestedSet
from ingest.true_labels import held_out_keys
from pipeline.errors import ConfigError, Stopped
from pipeline.models.features import extract_features
from pipeline.models.initial import InitialBackbone, backbone_from_artifact
from pipeline.steps.artifact import Artifact
from pipeline.storage.root import Root
from pipeline.training.fit import FitResult, fit
from pipeline.training.objective import TrainingJob
from selfsup.components.method import Policy, ViewKind, Views
from selfsup.deepclusterv2 import DeepCluster
from selfsup.stages import step, stream, training
from selfsup.stages.budget import Budget, fewest_images
from selfsup.stages.collapse import effective_rank, is_collapsed, spread
from selfsup.stages.initial import image_statistics
from selfsup.stages.objective import StageObjective
from tests.disk import folder_of
from tests.selfsup.sandbox import SEED, SMALL, TWO, StageSandbox, log, weights


def test_run_stage_backbone_loads_in_timm_and_starts_next_stage(sandbox: StageSandbox) -> None:
    first = sandbox.run()
    model = timm.create_model(
        "test_resnet", num_classes=0, checkpoint_path=str(folder_of(first) / "backbone.safetensors")
    )
    assert all(torch.equal(one, weights(first)[name]) for name, one in model.state_dict().items())
    start = backbone_from_artifact(first)
    assert (start.name, start.size) == ("test_resnet", 32)
    assert len(start.statistics[0]) == 3
    second = sandbox.run(first, name="second", method="mocov2", start="garments")
    assert any(not torch.equal(one, weights(first)[name]) for name, one in weights(second).items())
    assert second.counts["family"] == "contrastive"
    assert second.counts["features"]["before"].keys() == {"spread", "rank"}
    assert second.counts["features"]["collapsed"] is False


def test_run_stage_keeps_initial_backbone_and_makes_fresh_heads(
    sandbox: StageSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, seen = sandbox.run(), []

    def record(job: Any, *_: Any) -> FitResult:
        seen.append({name: one.clone() for name, one in job.objective.method.state_dict().items()})
        return FitResult([], 0.0, 0.0, 1)

    monkeypatch.setattr(training, "fit", record)
    untrained = sandbox.run(first, name="second", method="mocov2", start="garments")
    for name, one in weights(first).items():
        assert torch.equal(seen[0][f"backbone.model.{name}"], one)
        assert torch.equal(seen[0][f"key_encoder.network.0.model.{name}"], one), "the key encoder is a copy"
        assert torch.equal(weights(untrained)[name], one), "without any step, the backbone is the initial one"
    sandbox.run(first, name="third", method="mocov2", start="garments")
    assert not torch.equal(seen[0]["head.0.weight"], seen[1]["head.0.weight"]), "each stage has a fresh head"
    torch.testing.assert_close(seen[0]["queue.keys"].norm(dim=1), torch.ones(len(seen[0]["queue.keys"])))


def test_run_stage_lists_the_parameters_that_mae_does_not_train(sandbox: StageSandbox) -> None:
    fixed = sandbox.run(method="mae", backbone="test_vit", width=32, depth=1)
    assert fixed.counts["untrained"] == ["pos_embed"]


@pytest.mark.parametrize(
    "method",
    [
        {"method": "mocov2", "trainable": "norm"},
        {"method": "dino", "local_views": 2, "hidden": 32, "outputs": 16},
        {"method": "mae", "backbone": "test_vit", "width": 32, "depth": 1},
        {"method": "simclr", "data": ["kinds"], "labels": TWO},
    ],
    ids=lambda method: method["method"],
)
def test_run_stage_learns_the_same_with_gradient_checkpointing(sandbox: StageSandbox, method: dict[str, Any]) -> None:
    elsewhere = Root.of(folder_of(sandbox.run(**method)).parents[2] / "elsewhere")
    runtime = dataclasses.replace(sandbox.runtime, root=elsewhere, gradient_checkpointing=True)
    plain, other = sandbox.run(**method), dataclasses.replace(sandbox, runtime=runtime).run(**method)
    assert other.fingerprint == plain.fingerprint
    assert list(weights(other)) == list(weights(plain))
    assert all(torch.equal(one, weights(other)[name]) for name, one in weights(plain).items())
    assert [line["losses"] for line in log(other)] == [line["losses"] for line in log(plain)]


def test_run_stage_starts_with_the_features_of_the_initial_backbone(
    sandbox: StageSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On images that it never saw; with statistics of its own images, only their normalisation differs."""
    elsewhere, first = sandbox.images(data=["pool"]), sandbox.run()
    monkeypatch.setattr(training, "fit", lambda *_: FitResult([], 0.0, 0.0, 1))
    same, fresh = (
        backbone_from_artifact(sandbox.run(first, name="second", start="garments", data=["kinds"], statistics=kept))
        for kept in ("backbone", "data")
    )

    def features(backbone: InitialBackbone) -> torch.Tensor:
        return extract_features(backbone.build(), elsewhere, range(len(elsewhere)), sandbox.runtime)

    start = backbone_from_artifact(first)
    assert not {*elsewhere.keys()} & {*sandbox.images().keys(), *sandbox.images(data=["kinds"]).keys()}
    assert torch.equal(features(same), features(start))
    assert not torch.allclose(features(fresh), features(start), rtol=0.01)
    assert torch.equal(features(dataclasses.replace(fresh, statistics=start.statistics)), features(start))
    torch.testing.assert_close(fresh.statistics, image_statistics(sandbox.images(data=["kinds"])))


def test_run_stage_trainable_norm_trains_norms_and_head_only(
    sandbox: StageSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HPT-BN, in the training loop itself: other weights stay the same bit for bit."""
    first, heads = sandbox.run(), list[dict[str, torch.Tensor]]()

    def noting(job: TrainingJob, *given: Any) -> FitResult:
        head = job.objective.get_submodule("method.head")
        heads.append({name: one.clone() for name, one in head.state_dict().items()})
        fitted = fit(job, *given)
        heads.append(head.state_dict())
        return fitted

    monkeypatch.setattr(training, "fit", noting)
    second = sandbox.run(first, name="second", method="mocov2", start="garments", trainable="norm")
    changed = {name for name, one in weights(second).items() if not torch.equal(one, weights(first)[name])}
    parts = backbone_from_artifact(first).build().model.named_modules()
    norms = {name for name, part in parts if isinstance(part, torch.nn.BatchNorm2d)}
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert norms
    assert changed == {f"{name}.{kind}" for name in norms for kind in kinds}
    parameters = [name for name, _ in backbone_from_artifact(first).build().model.named_parameters()]
    assert second.counts["untrained"] == [name for name in parameters if name not in changed]
    assert first.counts["untrained"] == []
    assert [name for name, one in heads[1].items() if torch.equal(one, heads[0][name])] == []


def test_load_images_leaves_out_held_out_images_and_labels(sandbox: StageSandbox) -> None:
    without = {key for made in sandbox.sets.values() for key in held_out_keys(IngestedSet(made))}
    assert without
    dataset = sandbox.images(data=["truth", "pool"])
    seen = {dataset.read(index)[0] for index in range(len(dataset))}
    assert not seen & without
    assert all(layers == {} for layers in (shard.label_sources for shard in dataset.shards)), "without labels"


def test_stage_pool_lists_images_without_labels(sandbox: StageSandbox) -> None:
    pool = sandbox.inputs({**SMALL, "data": ["kinds"]})["pool.garments"]
    listed = pq.read_schema(folder_of(pool) / "pool.parquet").names
    assert listed == ["key", "set", "shard", "row", "used", "reason"]


def test_load_images_smaller_share_is_a_subset(sandbox: StageSandbox) -> None:
    def keys(share: float) -> set[str]:
        dataset = sandbox.images(data=["truth", "pool"], share=share)
        return {dataset.read(index)[0] for index in range(len(dataset))}

    few, half, every = keys(0.25), keys(0.5), keys(1.0)
    assert few < half < every
    assert len(half) == round(0.5 * len(every))


def test_run_stage_counts_no_steps_that_it_did_not_take(sandbox: StageSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where patience ends it before."""
    monkeypatch.setattr(step, "train", lambda *_: {"steps": 3})
    made = sandbox.run(labels={**TWO, "until": 0.5}, data=["kinds"])
    assert (made.counts["images_seen"], made.counts["views_seen"]) == (2 * 6 + 4, 3 * 8)
    assert artifact_cost(made).images == 2 * 6 + 4


@pytest.mark.parametrize(
    ("settings", "unlabelled"),
    [
        ({"batch": 4}, 4),
        ({"batch": 64, "share": 0.5}, 64),
        ({"batch": 4, "data": ["kinds"], "labels": TWO}, 2),
        ({"batch": 64, "data": ["kinds"], "labels": TWO}, 62),
    ],
)
def test_fewest_images_are_those_that_the_smallest_step_shares_out(
    sandbox: StageSandbox, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], unlabelled: int
) -> None:
    jobs: list[training.StageJob] = []

    def train(job: training.StageJob, *_: Any) -> dict[str, int]:
        jobs.append(job)
        return {"steps": 1}

    monkeypatch.setattr(step, "train", train)
    sandbox.run(**settings)
    [job], stage = jobs, {**SMALL, **settings}
    expected = min(unlabelled, len(sandbox.images(**settings)))
    config = step.stage_config(stage).model_dump(mode="json")
    assert fewest_images({"stage": config}, sandbox.inputs(stage).artifacts) == expected
    assert job.stream.budget.fewest_images(len(job.stream.dataset)) == expected


def test_single_pass_has_every_image_once_and_no_batch_of_one(sandbox: StageSandbox) -> None:
    """A batch norm needs more than one."""
    images = sandbox.images(data=["kinds"])
    for size in range(2, len(images) + 2):
        views = stream.ViewStream(images, [ViewKind(32, Policy())], Budget(1, size), None, SEED)
        batches = [batch.keys for batch in views.single_pass(size, 1)]
        assert [key for keys in batches for key in keys] == [images.read(index)[0] for index in range(len(images))]
        assert all(min(size, len(images)) <= len(keys) < 2 * size for keys in batches)


@pytest.mark.parametrize("count", [3, 20])
def test_sample_has_as_many_images_as_a_pass(sandbox: StageSandbox, count: int) -> None:
    """However many the set has: more would take longer than a pass does."""
    images = sandbox.images(data=["kinds"])
    views = stream.ViewStream(images, [ViewKind(32, Policy())], Budget(2, 8), None, SEED).sample(count)
    assert views.keys == [images.read(number % len(images))[0] for number in range(count)]
    assert [len(each) for each in views.unlabelled] == [count]
    assert views.step == 1, "at step 0 features are measured"


def test_run_stage_counts_images_and_views_seen(sandbox: StageSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of 8 views: of 4 images, or of 2 images and 4 labelled ones until the labels end."""
    passed: list[Views] = []
    forward = StageObjective.forward

    def noting(learning: StageObjective, batch: Views, shares: dict[str, float]) -> Any:
        passed.append(batch)
        return forward(learning, batch, shares)

    monkeypatch.setattr(StageObjective, "forward", noting)
    for labels, images in ((None, 16), ({**TWO, "until": 0.5}, 20), (TWO, 24)):
        passed.clear()
        made = sandbox.run(labels=labels, data=["kinds"])
        assert (made.counts["images_seen"], made.counts["views_seen"]) == (images, 32)
        shown = [len(batch.keys) + (0 if batch.classes is None else len(batch.classes)) for batch in passed]
        assert (sum(shown), artifact_cost(made).images) == (images, images)


def stopped_and_resumed(sandbox: StageSandbox, at: str, settings: dict[str, Any]) -> Artifact:
    """Train the stage on another root, stopped at the first progress line that contains `at`, and resume it."""
    root = Root.of(Path(sandbox.runtime.root.path).parent / "other")
    stop = threading.Event()
    ask = lambda step, done, line: stop.set() if at in line else None  # noqa: E731
    with pytest.raises(Stopped):
        StageSandbox(sandbox.sets, dataclasses.replace(sandbox.runtime, root=root, progress=ask, stop=stop)).run(
            **settings
        )
    return StageSandbox(sandbox.sets, dataclasses.replace(sandbox.runtime, root=root)).run(**settings)


def test_run_stage_resumes_to_the_same_end(sandbox: StageSandbox) -> None:
    settings: dict[str, Any] = {"method": "mocov2", "steps": 6}
    whole = sandbox.run(**settings)
    lines = log(whole)
    again = stopped_and_resumed(sandbox, f"loss {lines[3]['loss']:.3f}", settings)
    assert [line["loss"] for line in log(again)] == [line["loss"] for line in lines]
    assert again.digest == whole.digest
    assert again.counts.keys() - whole.counts.keys() == {"earlier_seconds"}
    assert again.counts["earlier_seconds"] <= again.counts["training_seconds"]


CLUSTERS: dict[str, Any] = {"method": "deepclusterv2", "data": ["kinds"], "hidden": 32, "dim": 16, "clusters": 4}


@pytest.mark.parametrize(("at", "times"), [("loss ", 2), ("4 of 14 images seen before the first step", 3)])
def test_initialize_sees_all_images_once_before_the_first_step(
    at: str, times: int, sandbox: StageSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On threads; a stop is obeyed meanwhile, and the pass starts over."""
    begun, threads = [], set()
    really_begin, really_draw = DeepCluster.initialize, stream.draw_views

    def initialize(method: DeepCluster, batches: Iterable[tuple[torch.Tensor, list[torch.Tensor]]]) -> None:
        begun.append(method)
        assert method.training, "as when the embeddings that it clusters are learned"
        really_begin(method, batches)

    def draw_views(*given: Any) -> Any:
        threads.add(threading.current_thread())
        return really_draw(*given)

    monkeypatch.setattr(DeepCluster, "initialize", initialize)
    monkeypatch.setattr(stream, "draw_views", draw_views)
    whole = sandbox.run(**CLUSTERS)
    assert stopped_and_resumed(sandbox, at, CLUSTERS).digest == whole.digest
    assert len(begun) == times
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "mae"}, r"a plain vision transformer, which 'test_resnet' is not"),
        ({"method": "byol", "labels": TWO, "data": ["kinds"]}, r"'byol' takes no labelled images beside the others"),
        ({"data": ["pool"], "labels": {}}, r"the sets pool have 0 kinds of class labels"),
        ({"labels": {"per_class": 50}, "data": ["kinds"]}, r"of 14 images 6 are labelled as .a., and 50 of each class"),
        (
            {"labels": {"images": 4}, "data": ["kinds"]},
            r"2 classes x 4 images make 8 .* batch of 4 has room for an even number, at most 4: batch: 6 would work",
        ),
        ({"labels": {"images": 5}, "data": ["kinds"]}, r"make 10 .* batch: 7 would work"),
        ({"labels": {}, "data": ["kinds"], "batch": 2}, r"batch of 2 has room for none: batch: 6 would work"),
        ({"share": 0.001}, r"share 0\.001 of \d+ images leaves 0 to train on in truth: .* 0\.\d+ or more would work"),
        ({"batch": 10**8}, r"batch \(100000000\) is far more than the \d+ images there are: \d+ or fewer would work"),
    ],
)
def test_run_stage_refuses_impossible_settings(sandbox: StageSandbox, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sandbox.run(**settings)


@pytest.mark.parametrize("width", [16, 64, 256])
def test_spread_of_random_directions_is_one(width: int) -> None:
    """Each coordinate of a random unit vector deviates by 1 / sqrt(width); lengths do not matter."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.rand(4096, 1, generator=generator) + 0.1
    features = torch.randn(4096, width, generator=generator) * lengths
    assert spread(features).item() / width**0.5 == pytest.approx(1 / width**0.5, rel=0.01)


def test_spread_and_effective_rank_show_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    even = torch.randn(512, 64, generator=generator)
    assert spread(even).item() == pytest.approx(1, abs=0.02)
    assert effective_rank(even).item() > 50
    line = torch.randn(512, 1, generator=generator) * torch.ones(64)
    assert effective_rank(line + torch.randn(64, generator=generator)).item() < 4
    assert spread(torch.ones(512, 64)).item() < 1e-3


@pytest.mark.parametrize(
    ("after", "collapsed"),
    [
        ({"spread": 0.9, "rank": 200.0}, False),
        ({"spread": 0.1, "rank": 30.0}, False),
        ({"spread": 0.01, "rank": 200.0}, True),
        ({"spread": 0.9, "rank": 10.0}, True),
    ],
)
def test_is_collapsed_to_a_point_or_to_few_directions(after: dict[str, float], collapsed: bool) -> None:
    assert is_collapsed({"spread": 0.2, "rank": 206.0}, after) == collapsed
