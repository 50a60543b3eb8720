"""Test costs of backbones: own training, and what it builds on."""

from __future__ import annotations

from typing import Any

import pytest

from evaluation.comparison.cost import Cost, artifact_cost, backbone_cost, sum_costs
from pipeline.steps.artifact import Artifact
from pipeline.storage.root import Root

SCHEDULE = {"steps": 10, "batch": 4}


def made(inputs: tuple[str, ...] = (), seconds: float = 1.0, counts: Any = None, **config: Any) -> Artifact:
    """Return an artifact with a manifest."""
    manifest: dict[str, Any] = {
        "inputs": {name: {} for name in inputs},
        "seconds": seconds,
        "counts": {"images": 100} if counts is None else counts,
        "config": config,
    }
    return Artifact(Root.of("nowhere"), "nothing", manifest)


@pytest.fixture
def chain() -> dict[str, Artifact]:
    """Return two teachers trained on one set, their student, and two stages from there."""
    return {
        "data.a": made(seconds=3, counts={"images": 100}),
        "teacher.one": made(("data.a",), 20, teacher=SCHEDULE),
        "teacher.two": made(("data.a",), 30, teacher={"epochs": 2, "batch": 50}),
        "label": made(("teacher.one", "teacher.two", "data.a"), 5),
        "student": made(("label", "teacher.one", "teacher.two", "data.a"), 40, student={"steps": 7, "batch": 10}),
        "stage.a": made(("student", "data.a"), 50, {"images": 100, "steps": 9}, stage={"steps": 11, "batch": 2}),
        "stage.b": made(("stage.a", "data.a"), 60, stage={"steps": 2, "batch": 8}),
        "evaluate": made(("stage.b",), 1000),
    }


def test_artifact_cost_counts_steps_and_images() -> None:
    assert artifact_cost(made(seconds=2.5, stage=SCHEDULE)) == Cost(10, 40, 2.5)
    assert artifact_cost(made(student={"epochs": 3, "batch": 30})) == Cost(10, 300, 1.0), (
        "three times 100 images, 30 a step"
    )
    assert artifact_cost(made(teacher={"kind": "supervised", "task": "depth", **SCHEDULE})) == Cost(10, 40, 1.0)
    assert artifact_cost(made(supervised=SCHEDULE)) == Cost(10, 40, 1.0)


def test_artifact_cost_counts_the_seconds_of_workers_and_earlier_attempts() -> None:
    assert artifact_cost(made(seconds=2, counts={"worker_seconds": 30.0})) == Cost(seconds=32)
    assert artifact_cost(made(seconds=2, counts={"earlier_seconds": 5.0})) == Cost(seconds=7)


def test_artifact_cost_takes_the_counted_steps() -> None:
    """Stages with labels count their steps."""
    assert artifact_cost(made(counts={"images": 100, "steps": 6}, stage=SCHEDULE)) == Cost(6, 24, 1.0)


def test_artifact_cost_takes_the_counted_images() -> None:
    """A stage with labels takes more images than the batch; older artifacts have no such count."""
    counted = {"images": 100, "steps": 6, "images_seen": 30}
    assert artifact_cost(made(counts=counted, stage=SCHEDULE)) == Cost(6, 30, 1.0)


def test_artifact_cost_without_training_is_time_alone() -> None:
    assert artifact_cost(made(seconds=7)) == Cost(0, 0, 7)
    assert artifact_cost(made(seconds=7, counts={"classes": 3}, teacher={"kind": "pretrained", "model": "m"})) == Cost(
        0, 0, 7
    )


def test_artifact_cost_includes_earlier_attempts() -> None:
    counts = {"images": 100, "training_seconds": 93.5, "earlier_seconds": 90.0}
    assert artifact_cost(made(seconds=5, counts=counts, stage=SCHEDULE)) == Cost(10, 40, 95.0)
    del counts["earlier_seconds"]
    assert artifact_cost(made(seconds=99, counts=counts, stage=SCHEDULE)) == Cost(10, 40, 99)


def test_backbone_cost_counts_everything_in_the_base_once(chain: dict[str, Artifact]) -> None:
    own, base = backbone_cost(chain["stage.b"], chain)
    assert own == Cost(2, 16, 60)
    parts = [
        artifact_cost(chain[name]) for name in ("data.a", "teacher.one", "teacher.two", "label", "student", "stage.a")
    ]
    assert base == sum_costs(parts)
    assert base == Cost(10 + 4 + 7 + 9, 40 + 200 + 70 + 18, 3 + 20 + 30 + 5 + 40 + 50)


def test_backbone_cost_of_the_student_has_its_teachers_in_the_base(chain: dict[str, Artifact]) -> None:
    own, base = backbone_cost(chain["student"], chain)
    assert (own.steps, base.steps, base.seconds) == (7, 14, 58)


def test_backbone_cost_of_weights_from_elsewhere_is_nothing(chain: dict[str, Artifact]) -> None:
    assert backbone_cost(None, chain) == (Cost(), Cost())


def test_sum_costs_of_nothing_is_nothing() -> None:
    assert sum_costs([]) == Cost()
