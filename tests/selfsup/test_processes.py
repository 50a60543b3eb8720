"""Stages trained by several processes: the losses, weights, queues and banks of one process with the joint batch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.data.dataset import DatasetShard, ImageDataset
from pipeline.errors import ConfigError, Stopped
from pipeline.models.backbone import Backbone
from pipeline.recipe.stage import PolicyConfig
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.training import autotune
from pipeline.training.autotune import ComputeConfig
from selfsup.components.method import Method, StageSetting
from selfsup.stages.budget import budget_of
from selfsup.stages.labelled_sampler import ClassSampler
from selfsup.stages.objective import RANK, SPREAD, override_policies
from selfsup.stages.step import run_stage
from selfsup.stages.stream import ViewStream
from selfsup.stages.training import StageJob, train
from tests.processes import Launcher, files
from tests.selfsup.sandbox import SEED, SMALL, TWO, StageSandbox
from tests.selfsup.small_methods import IMAGENET, config, with_teacher

IMAGES, CLASSES, STEPS = 14, 2, 3
NAMES = ("a", "b")
NO_COLORS = PolicyConfig(jitter=0, grayscale=0, blur=0, solarize=0)
"""What is drawn at random in a pass depends on the number of processes; crops don't."""
SUNCET = {"method": "suncet", "images": 2, "until": 0.5, "smoothing": 0.1}
SUPCON = {"method": "supcon", "images": 2}
CASES: dict[str, dict[str, Any]] = {
    "simclr": {"method": "simclr"},
    "simclr, suncet": {"method": "simclr", "labels": SUNCET},
    "mocov2": {"method": "mocov2", "queue": 12},
    "mocov2, supcon": {"method": "mocov2", "queue": 12, "labels": SUPCON},
    "supcon": {"method": "supcon"},
    "byol": {"method": "byol"},
    "dino": {"method": "dino"},
    "swav": {"method": "swav", "queue": 10, "queue_from": 0.0},
    "swav, suncet": {"method": "swav", "labels": SUNCET},
    "deepclusterv2": {"method": "deepclusterv2"},
    "distill": {"method": "distill", "mixup": False, "queue": 12},
    "comatch": {"method": "comatch", "labels": {"images": 2}},
    "startup": {"method": "startup"},
    "depthcontrast": {"method": "depthcontrast", "queue": 12},
    "pretext": {"method": "pretext", "pretexts": ["gabor", "hog"]},
    "startup, labels": {"method": "startup", "labels": {"images": 2, "until": 0.5}},
    "deepclusterv2, supcon": {"method": "deepclusterv2", "labels": SUPCON},
}
WITH_LABELS = ["simclr, suncet", "mocov2, supcon", "deepclusterv2, supcon", "comatch", "startup, labels"]
Found = tuple[dict[str, NDArray[Any]], list[dict[str, float]]]
"""The state of a method, and the losses of each step."""


def without_batch_norms(module: nn.Module) -> nn.Module:
    """Put layer norms in the place of batch norms, which depend on the images of a process."""
    for name, child in module.named_children():
        is_norm = isinstance(child, nn.BatchNorm1d)
        norm = nn.LayerNorm(child.num_features, elementwise_affine=False) if is_norm else without_batch_norms(child)
        setattr(module, name, norm)
    return module


@dataclasses.dataclass(frozen=True)
class Stages:
    """Trainings of stages that every process runs."""

    shards: list[DatasetShard]
    root: Path
    stop_after: int = STEPS
    """The step after which they are asked to stop."""

    def job(self, **settings: Any) -> StageJob:
        """Make a stage of these settings."""
        stage = config(settings.pop("method"), optimizer="sgd", lr=0.05, warmup=0, steps=STEPS, **settings)
        images, classes = ImageDataset(self.shards), torch.arange(IMAGES) % CLASSES
        torch.manual_seed(0)
        backbone = Backbone("test_convnext", 32, IMAGENET)
        setting = with_teacher(stage, StageSetting(32, IMAGES, stage.batch, classes, NAMES if stage.labels else ()))
        torch.manual_seed(0)
        method = stage.build_for_stage(backbone, setting)
        without_batch_norms(method)
        members = [np.flatnonzero(classes.numpy() == number) for number in range(CLASSES)]
        sampler = ClassSampler(members, CLASSES, 2, SEED) if stage.labels else None
        kinds = override_policies(method.view_kinds(), NO_COLORS)
        budget = budget_of(stage, 2 * CLASSES if stage.labels else 0, IMAGES)
        return StageJob("stage.t", stage, method, ViewStream(images, kinds, budget, sampler, SEED), None)

    def train(self, name: str, batch: int = 9) -> Found:
        """Train, and return the state and the losses."""
        out, job = self.root / name, self.job(batch=batch, **CASES[name])
        runtime = Runtime(Root.of(self.root), "cpu", "32", 1, checkpoint_s=0)
        ask = lambda _, done, __: runtime.stop.set() if round(done * STEPS) == self.stop_after else None  # noqa: E731
        train(job, dataclasses.replace(runtime, progress=ask if self.stop_after < STEPS else runtime.progress), out)
        lines = (out / "log/train.jsonl").read_text("utf-8").splitlines()
        if not job.method.communicates:
            assert job.method.collectives.world_size == 1
        left_out = () if job.method.communicates else (SPREAD, RANK)  # measured over the images of each process
        losses = [json.loads(line)["losses"] for line in lines]
        return state(job.method), [{name: line[name] for name in line if name not in left_out} for line in losses]

    def train_all(self, cases: Iterable[str]) -> dict[str, Found | None]:
        """Train these stages, without autotuning; None for one that was stopped."""
        setattr(autotune, "autotune", lambda *_: ComputeConfig("cpu", "32", False, {}))  # noqa: B010 - in this process
        found: dict[str, Found | None] = {}
        for name in cases:
            try:
                found[name] = self.train(name)
            except Stopped:
                found[name] = None
        return found


def state(method: Method) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in method.state_dict().items()}


def differing(found: Found | None, other: Found | None) -> list[str]:
    """Return what differs in the states of two processes."""
    assert found
    assert other
    return [name for name, array in found[0].items() if not np.array_equal(array, other[0][name])]


def assert_close(found: Found | None, expected: Found | None, case: str) -> None:
    """Assert equality up to rounding."""
    assert found
    assert expected
    for name, array in expected[0].items():
        np.testing.assert_allclose(found[0][name], array, rtol=2e-3, atol=2e-5, err_msg=f"{case}: {name}")
    assert [line.keys() for line in found[1]] == [line.keys() for line in expected[1]]
    for one, other in zip(found[1], expected[1], strict=True):
        assert one == pytest.approx(other, rel=1e-4), case


@pytest.fixture
def stages(
    tmp_path: Path,
    make_dataset_shard: Callable[..., DatasetShard],
    noise: Callable[..., NDArray[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Stages]:
    """Return a function that makes stages on fourteen pictures, in a folder of their own."""
    monkeypatch.setattr(autotune, "autotune", autotune.autotune)  # back to it at the end
    shard = make_dataset_shard("s0", [noise(number) for number in range(IMAGES)], {})
    return lambda name, **more: Stages([shard], tmp_path / name, **more)


def test_train_stage_in_several_processes_learns_what_one_learns(
    launcher: Launcher, stages: Callable[..., Stages]
) -> None:
    """Shares are unequal: 4 and 5 of nine images, or 3 and 4 of seven beside labelled ones.

    Of five processes, the first has no labelled image.
    """
    alone = stages("alone").train_all(CASES)
    for processes, names in ((2, list(CASES)), (5, WITH_LABELS)):
        first, *others = launcher.call(processes, stages(f"{processes}").train_all, names)
        for name in names:
            assert_close(first[name], alone[name], f"{name}, {processes} processes")
            assert [differing(other[name], first[name]) for other in others] == [[]] * len(others), name


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_train_stage_resumes_with_another_number_of_processes(
    launcher: Launcher, stages: Callable[..., Stages], before: int, after: int
) -> None:
    names = ("mocov2, supcon", "swav, suncet", "deepclusterv2")
    whole = stages("alone").train_all(names)
    assert launcher.call(before, stages("parts", stop_after=2).train_all, names) == [dict.fromkeys(names)] * before
    for found in launcher.call(after, stages("parts").train_all, names):
        for name in names:
            assert_close(found[name], whole[name], name)


def train_refused(stages: Stages) -> None:
    stages.train("simclr, suncet", 4)


def test_train_stage_refuses_processes_without_images(launcher: Launcher, stages: Callable[..., Stages]) -> None:
    for error in launcher.call(3, train_refused, stages("refused")):
        assert isinstance(error, ConfigError)
        assert "3 processes are too many for 2 unlabelled images in a step" in str(error)


def run(config: Mapping[str, Any], artifacts: Mapping[str, Artifact], root: Path, out: Path) -> Mapping[str, Any]:
    """Run a stage as a process started by torchrun does."""
    return run_stage(config, Inputs(artifacts, Runtime(Root.of(root), "cpu", "32", 1)), out)


@pytest.mark.parametrize("method", ["simclr", "deepclusterv2"])
def test_run_stage_writes_and_counts_in_first_process_only(
    sandbox: StageSandbox, launcher: Launcher, tmp_path: Path, method: str
) -> None:
    """With batch norms and random colors, and autotuned."""
    stage = {**SMALL, "method": method, "data": ["kinds"], "labels": TWO}
    given, out = sandbox.inputs(stage), tmp_path / "out"
    counts, nothing = launcher.call(
        2, run, {"name": "stage.one", "stage": stage, "seed": SEED, "start": None}, dict(given.artifacts), tmp_path, out
    )
    assert nothing == {}
    assert (counts["processes"], counts["images_seen"], counts["steps"]) == (2, 4 * 6, 4)
    assert counts["features"].keys() == {"before", "after", "collapsed"}
    assert counts["choice"]["measured_ms"].keys() == {"32", "32 channels_last"}
    assert {name for name in files(out) if not name.startswith("work/")} == {
        "backbone.json",
        "backbone.safetensors",
        "log/train.jsonl",
    }
