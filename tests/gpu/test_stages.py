"""Self-supervised stages on each device: every method trains, and its steps don't wait."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.steps.artifact import Artifact
from pipeline.storage.root import Root
from pipeline.training.fit import fit
from pipeline.training.objective import TrainingJob
from pipeline.training.process_group import ProcessGroup
from selfsup.components.method import Method, Policy, Views
from selfsup.stages.objective import StageObjective
from tests.gpu.devices import GPU, compute_on, deterministic, fix_compute, runtime_on, watch_steps
from tests.pipeline.training.tiny_jobs import QUIET, log
from tests.selfsup.sandbox import StageSandbox, weights
from tests.selfsup.small_methods import METHODS, SMALL, STEPS, config, initialized, views

if TYPE_CHECKING:
    from tests.conftest import World

STILL = Policy(flip=0, jitter=0, grayscale=0, blur=0)
"""Leaves images as they are."""
DINO_AT_REST = {"teacher_momentum": 1.0, "center_momentum": 1.0, "teacher_warmup": 0.0}
"""Settings of a teacher whose targets don't move."""
LEARNING = 40
"""Steps on one batch."""


def on_gpu(*names: str) -> list[Any]:
    return [pytest.param("cuda", name, marks=GPU) for name in names]


every_method = pytest.mark.parametrize(("device", "name"), [("cpu", "simclr"), *on_gpu(*METHODS)])
"""On a GPU; on the CPU one, to see that the test works: other tests train them all there."""


class SameViews:
    """A stream of one and the same batch."""

    def __init__(self, method: Method) -> None:
        drawn = views(method)
        self.views = dataclasses.replace(drawn, unlabelled=[(255 * images).byte() for images in drawn.unlabelled])

    def batches(self, start: int) -> Generator[LocalViews]:
        """Yield it for all steps; a method knows of a few of them, as its schedules end."""
        for step in itertools.count(start):
            yield LocalViews(dataclasses.replace(self.views, step=min(step, STEPS - 1)))


@dataclasses.dataclass
class LocalViews:
    """Views that are collated already."""

    views: Views

    @property
    def keys(self) -> list[str]:
        return self.views.keys

    def split(self, count: int) -> list[Views]:
        assert count == 1
        return [self.views]


@every_method
def test_method_learns_on_the_device(name: str, device: str, tmp_path: Path) -> None:
    own: dict[str, Any] = DINO_AT_REST if name == "dino" else {}
    method = initialized(name, **own)
    kinds = [dataclasses.replace(kind, policy=STILL) for kind in method.view_kinds()]
    settings = config(name, **own, optimizer="adamw", lr=3e-3, weight_decay=0.0, warmup=0, steps=LEARNING)
    with ProcessGroup(device) as group:
        job = TrainingJob(
            "stage.one", StageObjective(method, kinds), SameViews(method), LEARNING, tmp_path, settings, seed=0
        )
        fit(job, compute_on(device), group, QUIET)
    losses = [line["loss"] for line in log(tmp_path)]
    assert len(losses) == LEARNING
    assert np.isfinite(losses).all()
    assert min(losses[-5:]) < losses[1] - 0.02 * abs(losses[1]), losses


def run_stage(world: World, device: str, root: Path, name: str, **settings: Any) -> Artifact:
    """Train a stage of this method on the world's pool."""
    sets = {set_name: made for set_name, made in world.artifacts.items() if set_name.startswith("data.")}
    sandbox = StageSandbox(sets, runtime_on(device, world, root=Root.of(root), **settings))
    backbone = "test_vit" if name == "mae" else "test_resnet"
    return sandbox.run(method=name, backbone=backbone, steps=6, **SMALL.get(name, {}))


@every_method
def test_stage_steps_do_not_wait_for_the_device(
    world: World, name: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even those of the queue, the prototypes, the masks or the moving average."""
    fix_compute(monkeypatch, device)
    watched = watch_steps(monkeypatch, device)
    made = run_stage(world, device, tmp_path, name)
    assert made.counts["choice"]["device"] == device
    assert watched == [2, 3, 4, 5]


@pytest.mark.parametrize(("device", "name"), [("cpu", "dino"), *on_gpu("simclr", "dino")])
def test_stage_is_repeatable_to_the_last_bit(world: World, name: str, device: str, tmp_path: Path) -> None:
    with deterministic():
        one, other = (
            weights(run_stage(world, device, tmp_path / part, name, deterministic=True)) for part in ("one", "other")
        )
    assert all((tensor == other[weight]).all() for weight, tensor in one.items())
