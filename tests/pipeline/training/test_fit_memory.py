"""A device that runs out of memory: the same training in smaller microbatches, and an error where none fits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.stream import split_evenly
from pipeline.errors import ConfigError, OutOfMemory, Stopped
from pipeline.recipe.base import FitConfig
from pipeline.steps.runtime import Runtime
from pipeline.training.fit import MicrobatchLimit
from pipeline.training.microbatch import LIMIT_FILE, MicrobatchRunner
from pipeline.training.objective import TrainingJob
from pipeline.training.process_group import ProcessGroup
from tests.pipeline.training.tiny_jobs import (
    CPU_32,
    STEPS,
    Batch,
    ConvNet,
    Linears,
    NumberedStream,
    assert_same,
    log,
    stopping,
    train,
    train_with_result,
)


@pytest.fixture(autouse=True)
def cpu_may_run_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the CPU's memory run out as a GPU's does."""
    monkeypatch.setattr("pipeline.training.microbatch.NEVER_OUT_OF_MEMORY", ())


class OutOfMemoryInBackward(torch.autograd.Function):
    """Runs out of memory in the backward pass."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no more")


class Small(ConvNet):
    """Fits `room` images into memory at once, from batch `since` of the stream on; counts the microbatches refused."""

    def __init__(self, room: int, since: int = 0, backward: bool = False) -> None:
        super().__init__()
        self.room, self.since, self.backward, self.refused = room, since, backward, 0

    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = super().mean(batch)
        if len(batch.keys) > self.room and int(batch.keys[0].partition(".")[0]) >= self.since:
            self.refused += 1
            if not self.backward:
                raise torch.OutOfMemoryError("no more")
            head = OutOfMemoryInBackward.apply(self.head[2].weight).sum() * 0
            return loss + head, parts
        return loss, parts


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("batch", "room", "passes"), [(8, 4, 2), (8, 2, 4), (8, 3, 4), (6, 1, 6), (5, 1, 5)])
def test_fit_out_of_memory_is_a_fit_in_smaller_microbatches(
    tmp_path: Path, batch: int, room: int, passes: int, backward: bool
) -> None:
    small, whole = Small(room, backward=backward), Small(batch)
    limits = train_with_result(tmp_path / "small", small, batch=batch, ema=0.5).limits
    assert limits == [MicrobatchLimit(1, passes, -(-batch // passes))]
    assert train_with_result(tmp_path / "whole", whole, batch=batch, accumulate=passes, ema=0.5).limits == []
    assert log(tmp_path / "small") == log(tmp_path / "whole")
    assert_same(small, whole)
    assert small.refused <= 3, "what once was too much is not tried again"


def test_fit_lowers_the_microbatch_limit_from_where_memory_runs_out(tmp_path: Path) -> None:
    small = Small(2, since=6)
    assert train_with_result(tmp_path, small, batch=8).limits == [MicrobatchLimit(4, 4, 2)]
    assert [line["passes"] for line in log(tmp_path)] == [1, 1, 1, 4, 4, 4]
    assert small.refused == 2


def test_fit_lowers_the_microbatch_limit_again_when_memory_shrinks(tmp_path: Path) -> None:
    class Shrinking(Small):
        def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            self.room = 4 if batch.keys[0] < "6" else 1
            return super().mean(batch)

    assert train_with_result(tmp_path, Shrinking(4), batch=8).limits == [
        MicrobatchLimit(1, 2, 4),
        MicrobatchLimit(4, 8, 1),
    ]


def test_fit_out_of_memory_takes_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    class Tight(Linears):
        def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            if len(batch.keys) > 2:
                raise torch.OutOfMemoryError("no more")
            return super().mean(batch)

    tight, roomy = train(tmp_path / "tight", Tight(), batch=5), train(tmp_path / "roomy", Linears(), batch=5)
    for one, other in zip(tight.parameters(), roomy.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_fit_resumes_with_its_microbatch_limit(tmp_path: Path) -> None:
    whole = Small(2)
    train(tmp_path / "whole", whole, batch=8)
    with pytest.raises(Stopped):
        train(tmp_path / "parts", Small(2), stopping(after=3), batch=8)
    small = Small(2)
    assert train_with_result(tmp_path / "parts", small, batch=8).limits == [MicrobatchLimit(1, 4, 2)]
    assert small.refused == 0
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert_same(small, whole)


def test_fit_advises_when_memory_does_not_hold_one_image(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^teacher\.t: .* one image \(step 3\)\. .* smaller image_size, backbone or"):
        train(tmp_path, Small(0, since=2))
    assert [line["step"] for line in log(tmp_path)] == [1, 2]


def test_fit_advises_when_memory_does_not_hold_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> None:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(ConfigError, match=r"^teacher\.t: .* the network and what its optimiser keeps\. .* backbone"):
        train(tmp_path, Linears(), optimizer="adamw")


def test_fit_does_not_take_other_errors_for_out_of_memory(tmp_path: Path) -> None:
    class Broken(Linears):
        def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        train(tmp_path, Broken())


@pytest.mark.parametrize(("count", "pieces"), [(8, 3), (5, 5), (7, 1), (32, 5)])
def test_split_evenly_gives_lengths_that_differ_by_one_at_most(count: int, pieces: int) -> None:
    runs = [list(range(count))[run] for run in split_evenly(count, pieces)]
    assert [number for run in runs for number in run] == list(range(count))
    assert {len(run) for run in runs} <= {count // pieces, -(-count // pieces)}


class Synchronized(Small):
    """Has a layer that waits for the other processes in each pass."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self.norm = nn.SyncBatchNorm(2)


class Communicating(Small):
    """Compares images with those of the other processes in each pass."""

    communicates = True


@pytest.mark.parametrize("objective", [Synchronized, Communicating])
def test_microbatch_runner_saves_its_limit_when_passes_are_synchronized(tmp_path: Path, objective: type[Small]) -> None:
    """As one of two processes on CUDA: the other one waits inside a pass, and ends with this one."""
    job = TrainingJob("teacher.t", objective(2), NumberedStream(batch=8), STEPS, tmp_path, FitConfig(batch=8), seed=0)
    kept: list[Path] = []
    runtime = cast(Runtime, SimpleNamespace(root=SimpleNamespace(upload=kept.append)))
    runner = MicrobatchRunner(job, CPU_32, cast(ProcessGroup, SimpleNamespace(world_size=2, rank=1)), runtime)
    local = next(NumberedStream(batch=4).batches(0))
    amounts = runner.take_batch(runner.split(local, 4), 4)
    with pytest.raises(OutOfMemory, match=r"teacher\.t ran out .* step 8\. .* at most 2 images in a pass"):
        runner.run(amounts, step=7, limit=4)
    assert [path.name for path in kept] == [LIMIT_FILE], "the next attempt may be on another machine"
    limit = runner.saved_limit()
    runner.take_batch(runner.split(local, 4), limit)
    assert runner.run(amounts, step=7, limit=limit)[1].limit == 2
    assert train_with_result(tmp_path, Small(8), batch=8).limits == [MicrobatchLimit(1, 4, 2)]


def test_microbatch_runner_copies_buffers_only_where_memory_can_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_buffers, copied = MicrobatchRunner._copy_buffers, list[int]()

    def counting(runner: MicrobatchRunner) -> list[tuple[Tensor, Tensor]]:
        copied.append(len(copy_buffers(runner)))
        return copy_buffers(runner)

    monkeypatch.setattr(MicrobatchRunner, "_copy_buffers", counting)
    copying = train(tmp_path / "copying", ConvNet())
    monkeypatch.setattr("pipeline.training.microbatch.NEVER_OUT_OF_MEMORY", ("cpu",))
    assert_same(train(tmp_path / "not_copying", ConvNet()), copying)
    assert copied == [3] * STEPS + [0] * STEPS


def test_fit_splits_batches_when_a_library_gets_no_memory(tmp_path: Path) -> None:
    class Tight(Linears):
        def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            if len(batch.keys) > 2:
                raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
            return super().mean(batch)

    assert train_with_result(tmp_path, Tight()).limits == [MicrobatchLimit(1, 2, 2)]
