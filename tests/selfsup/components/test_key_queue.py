"""MoCo's queue of keys: first in, first out, in whole batches, and without keys of the query's own image."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from selfsup.components.method import StageSetting, Views
from tests.selfsup.small_methods import backbone, config, make, views


def test_moco_queue_is_first_in_first_out() -> None:
    method: Any = make("mocov2", queue=16)
    torch.testing.assert_close(method.queue.keys.norm(dim=1), torch.ones(16))
    before = method.queue.keys.clone()
    method.losses(views(method, step=0))
    assert torch.equal(method.queue.keys[8:], before[8:])
    first = method.queue.keys[:8].clone()
    assert not torch.equal(first, before[:8])
    method.losses(views(method, step=1))
    assert torch.equal(method.queue.keys[:8], first)
    assert int(method.queue.ptr) == 0, "it wraps around"
    method.losses(views(method, step=2))
    assert not torch.equal(method.queue.keys[:8], first)


@pytest.mark.parametrize("length", [4, 8, 12, 20])
def test_moco_queue_replaces_the_oldest_keys(length: int) -> None:
    """Also if its length is not a multiple of the batch, which is eight."""
    method: Any = make("mocov2", queue=length)
    known = {-1: method.queue.keys.clone()}
    for step in range(5):
        method.losses(views(method, step, index=torch.arange(8 * step, 8 * step + 8)))
        oldest_first = (method.queue.ptr + torch.arange(length)) % length
        owners = method.queue.images[oldest_first].tolist()
        assert owners == [*[-1] * length, *range(8 * step + 8)][-length:]
        rows = dict(zip(owners, method.queue.keys[oldest_first], strict=True))
        assert all(torch.equal(row, known[owner]) for owner, row in rows.items() if 0 <= owner < 8 * step)
        known |= rows


@pytest.mark.parametrize(("images", "batch", "length"), [(100, 8, 96), (5, 8, 8), (1_281_167, 256, 65_536)])
def test_moco_queue_length_is_whole_batches(images: int, batch: int, length: int) -> None:
    with torch.device("meta"):
        method: Any = config("mocov2").build_for_stage(backbone(), StageSetting(size=32, images=images, batch=batch))
    assert len(method.queue.keys) == len(method.queue.images) == length
    assert length % batch == 0


def test_moco_ignores_queued_keys_of_the_same_image() -> None:
    method: Any = make("mocov2", queue=16)
    method.losses(views(method, step=0))
    assert method.queue.images.tolist() == [*range(8), *[-1] * 8]
    method.queue.keys[:8] = torch.nan  # a loss that reads one of these is NaN
    order = torch.arange(8).flip(0)
    alone = Views(*[getattr(views(method, step=1, index=order), field.name) for field in dataclasses.fields(Views)])
    assert method.losses(alone)["mocov2"].isnan(), "other images' keys are"
    method.queue.images.fill_(3)
    method.queue.keys.copy_(normalize(torch.randn(16, 128), dim=1))
    same = views(method, step=2, index=torch.full((8,), 3))
    assert method.losses(same)["mocov2"].item() == pytest.approx(0, abs=1e-6), "nothing is left but its own key"
