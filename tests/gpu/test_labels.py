"""Labels of a GPU are those of the CPU, of several teachers at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from ingest.pool import pool_shards
from pipeline.steps.artifact import Inputs
from pipeline.storage.root import Root
from pipeline.stores.labels import Value
from teachers.labelling.inference import label_batches
from teachers.labelling.labeller import ShardJob, label_makers
from tests.gpu.devices import fix_compute, on_each_device, runtime_on

if TYPE_CHECKING:
    from tests.conftest import World

MOST_APART = {"kinds": 1e-3, "masks": 5e-3, "boxes": 0.1, "depth": 1e-3, "gabor": 1e-3}
"""By teacher, the largest `Label.distance` of two labels, by the mean over images: of class probabilities; of the share
of pixels of another class; of 1 - F1 of the boxes, of which many have nearly equal scores; of the share of pixels whose
depth differs by a quarter; of the filters' responses. In float32, without TF32."""


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Let a GPU multiply in float32 rather than in TF32, as trainings before this may have told it to."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def labels_by(world: World, device: str, batch: int, root: Path) -> dict[tuple[str, str], Value]:
    """Return the labels of all teachers, which label the pool at once on a device, by teacher and image."""
    runtime = runtime_on(device, world, root=Root.of(root))
    given = world.inputs("label")
    makers = label_makers(Inputs(given.artifacts, runtime))
    jobs = [ShardJob(name, shard, makers) for name, shard, _ in pool_shards(given["pool"], given.of_kind("data"))]
    labels = {head: label for maker in makers for head, label in maker.labels.items()}
    found = {}
    with contextlib.closing(label_batches([job.inference() for job in jobs], batch, runtime)) as batches:
        for rows in batches:
            for head, encoded in rows.labels.items():
                for key, row in zip(rows.keys, encoded, strict=True):
                    assert row is not None
                    found[head, key] = labels[head].decode(row)
    return found


@on_each_device
def test_label_batches_of_several_teachers_are_those_of_the_cpu(
    world: World, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_float32():
        fix_compute(monkeypatch, "cpu")
        expected = labels_by(world, "cpu", 1, tmp_path / "expected")
        fix_compute(monkeypatch, device)
        found = labels_by(world, device, 4, tmp_path / "found")
    assert found.keys() == expected.keys()
    forms = {maker.name: maker.labels[maker.name] for maker in label_makers(world.inputs("label"))}
    for name, label in forms.items():
        apart = [label.distance(found[key], expected[key]) for key in expected if key[0] == name]
        assert sum(apart) / len(apart) <= MOST_APART[name], (name, apart)
