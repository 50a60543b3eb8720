"""Training on each device: it learns, does not wait, goes on, is repeatable, and gets the batches that were drawn."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.loader import Batch, BatchLoader, LoaderConfig
from pipeline.errors import Stopped
from pipeline.models.checkpoint import read_tensors
from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.student import StudentConfig
from pipeline.training import device_prefetch
from pipeline.training.device import map_tensors
from pipeline.training.device_prefetch import SplitBatch
from student.dataset import heads_of, student_dataset
from tasks.network import build_network
from tests.gpu.devices import (
    GPU,
    WITHOUT_BOXES,
    deterministic,
    fix_compute,
    on_each_device,
    runtime_on,
    stop_after,
    train_step_of,
    watch_steps,
)
from tests.pipeline.training.tiny_jobs import log

if TYPE_CHECKING:
    from tests.conftest import World

BATCHES = {"cpu": 20, "cuda": 1000}
"""Batches to compare, by device."""


def weights(out: Path) -> dict[str, Tensor]:
    return read_tensors(out / "model.safetensors")[1]


def assert_same_weights(one: Path, other: Path) -> None:
    found, others = weights(one), weights(other)
    assert [name for name, tensor in found.items() if not torch.equal(tensor, others[name])] == []


@on_each_device
def test_train_step_of_detection_learns(
    world: World, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix_compute(monkeypatch, device)
    counts = train_step_of(world, "teacher.boxes", runtime_on(device, world), tmp_path, steps=40, batch=4, lr=0.002)
    assert counts["choice"]["device"] == device
    losses = [line["loss"] for line in log(tmp_path)]
    assert len(losses) == 40
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5]), losses


@on_each_device
def test_train_step_of_student_does_not_wait_for_the_device(
    world: World, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for detection, whose draws of anchors and proposals in torchvision look at values."""
    fix_compute(monkeypatch, device)
    watched = watch_steps(monkeypatch, device)
    train_step_of(world, "student", runtime_on(device, world), tmp_path, steps=6, **WITHOUT_BOXES)
    assert watched == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("device", "heads"),
    [("cpu", {}), pytest.param("cuda", {}, marks=GPU), pytest.param("cuda", WITHOUT_BOXES, marks=GPU)],
    ids=["cpu", "cuda", "cuda without detection"],
)
def test_train_step_of_student_is_repeatable_and_goes_on_exactly(
    world: World, device: str, heads: dict[str, Any], tmp_path: Path
) -> None:
    """With `runtime.deterministic`, bit for bit."""
    runtime = runtime_on(device, world, deterministic=True)
    with deterministic():
        for name in ("one", "other"):
            train_step_of(world, "student", runtime, tmp_path / name, steps=6, **heads)
        with pytest.raises(Stopped):
            train_step_of(world, "student", stop_after(runtime, 0.5), tmp_path / "parts", steps=6, **heads)
        train_step_of(world, "student", runtime, tmp_path / "parts", steps=6, **heads)
    assert log(tmp_path / "other") == log(tmp_path / "one")
    assert_same_weights(tmp_path / "other", tmp_path / "one")
    assert log(tmp_path / "parts") == log(tmp_path / "one")
    assert_same_weights(tmp_path / "parts", tmp_path / "one")


@on_each_device
def test_prefetch_to_device_yields_the_batches_that_are_drawn(world: World, device: str) -> None:
    loader, pending = loader_of(world), list[Tensor]()
    prefetched = device_prefetch.prefetch_to_device(
        loader.batches(0), lambda local: SplitBatch(local, local.split(1), []), device
    )
    for step, one in enumerate(itertools.islice(prefetched, BATCHES[device])):
        [batch] = one.microbatches
        assert batch.keys == one.local.keys
        pending.append(differing(batch, loader.batch(step)))
        torch.empty(2**20, device=device).fill_(step)  # takes memory that would be free too early, if it were
    prefetched.close()
    assert len(pending) == BATCHES[device]
    assert not torch.stack(pending).any()


def loader_of(world: World) -> BatchLoader:
    """Return the loader of the world's student, with targets of all its heads."""
    config, inputs = world.steps["student"].config, world.inputs("student")
    student = StudentConfig.model_validate(config["student"])
    heads = heads_of(student, inputs)
    network = build_network(student, {name: head.space for name, head in heads.items()}, config["seed"])
    collate = {head: task.collate for head, task in network.tasks.items()}
    settings = LoaderConfig(student.image_size, student.resize, student.batch, 0, AugmentConfig())
    return BatchLoader(student_dataset(student, heads, inputs), collate, settings)


def differing(prefetched: Batch, drawn: Batch) -> Tensor:
    """Return whether a tensor of two batches differs, bool (), on the device: reading it would let the host wait."""
    ours, theirs = tensors_of(prefetched), tensors_of(drawn)
    assert len(ours) == len(theirs) > 1
    assert all(one.shape == other.shape for one, other in zip(ours, theirs, strict=True))
    moved = [other.pin_memory() if one.is_cuda else other for one, other in zip(ours, theirs, strict=True)]
    differs = [(one != other.to(one.device, non_blocking=True)).any() for one, other in zip(ours, moved, strict=True)]
    return torch.stack(differs).any()


def tensors_of(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, note)
    return found


class MemoryLimit:
    """What a GPU gives this process: at most a share of what is in use now and at a training's peak."""

    def __init__(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.allocated, self.reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    def set(self, share: float) -> None:
        """Leave this share of what a training took, beside what was in use before it."""
        taken = torch.cuda.max_memory_allocated() - self.allocated
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((self.reserved + share * taken) / whole)

    @staticmethod
    def lift() -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@GPU[1]
def test_train_step_of_student_goes_on_in_smaller_parts_when_memory_runs_out(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix_compute(monkeypatch, "cuda")
    large: dict[str, Any] = {"steps": 3, "batch": 16, "image_size": 512, "backbone": "resnet18", **WITHOUT_BOXES}
    runtime, limit = runtime_on("cuda", world), MemoryLimit()
    assert "out_of_memory" not in train_step_of(world, "student", runtime, tmp_path / "large", **large)
    try:
        limit.set(0.7)
        counts = train_step_of(world, "student", runtime, tmp_path / "limited", **large)
    finally:
        limit.lift()
    assert counts["steps"] == 3
    assert all(part["images"] < 16 for part in counts["out_of_memory"])
    assert counts["out_of_memory"][0]["step"] == 1
    assert all(np.isfinite(line["loss"]) for line in log(tmp_path / "limited"))
