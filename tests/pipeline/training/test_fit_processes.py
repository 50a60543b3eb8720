"""Training in several processes: the same steps as in one, and what ends one ends all."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import ConfigError, DataError, LostPeer, Stopped
from pipeline.models.checkpoint import load_state
from pipeline.steps import ranks
from pipeline.steps.runtime import Runtime
from pipeline.storage import root
from pipeline.training import state
from pipeline.training.objective import Objective
from tests.pipeline.training.tiny_jobs import (
    LOG,
    QUIET,
    STATE,
    STEPS,
    Batch,
    ConvNet,
    Linears,
    NumberedStream,
    RootMeanSquare,
    infinite_image,
    log,
    make_batch,
    non_finite_gradient,
    stopping,
    train,
)
from tests.processes import Launcher, files, stopped_by_signal
from tests.waiting import wait_until

Weights = dict[str, NDArray[Any]]


def weights(module: nn.Module) -> Weights:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


class OtherWeights(ConvNet):
    """The same network with other weights."""

    def __init__(self) -> None:
        super().__init__(seed=7)


def trained(out: Path, objective: type[Objective], fields: dict[str, Any]) -> Weights:
    """Return the weights that a process has at the end of the fit."""
    return weights(train(out, objective(), **fields))


def assert_same(one: Weights, other: Weights) -> None:
    """Assert equality bit for bit."""
    assert [name for name, array in one.items() if not np.array_equal(array, other[name])] == []


def assert_close(one: Weights, other: Weights) -> None:
    """Assert equality up to rounding: a sum over two processes is rounded otherwise than one over all images."""
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-4, atol=1e-6, err_msg=name)


def assert_close_losses(one: Path, other: Path) -> None:
    found, expected = ([line["loss"] for line in log(out)] for out in (one, other))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# The steps of one process


@pytest.mark.parametrize(
    ("count", "fields"),
    [
        (2, {"batch": 8}),
        (2, {"batch": 8, "accumulate": 4, "ema": 0.5}),
        (2, {"batch": 5, "optimizer": "sgd"}),
        (2, {"batch": 5, "accumulate": 5}),
        (3, {"batch": 4, "clip": 0.01}),
    ],
    ids=str,
)
def test_fit_in_several_processes_takes_the_steps_of_one(
    launcher: Launcher, tmp_path: Path, count: int, fields: dict[str, Any]
) -> None:
    found = launcher.call(count, trained, tmp_path / "several", Linears, fields)
    alone = trained(tmp_path / "one", Linears, fields)
    assert_close(found[0], alone)
    for other in found[1:]:
        assert_same(other, found[0])
    assert_close_losses(tmp_path / "several", tmp_path / "one")
    names = [[line["losses"].keys() for line in log(tmp_path / folder)] for folder in ("several", "one")]
    assert names[0] == names[1]


class Heads(Objective):
    """Three heads: `all` learns from every image, `few` from those whose key ends with 3, `none` from no image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(48, 4)
        self.heads = nn.ModuleDict({name: nn.Linear(4, 2) for name in ("all", "few", "none")})

    def rows(self, batch: Batch) -> dict[str, list[int]]:
        """Return by head the images with a label."""
        rows = {"all": list(range(len(batch.keys))), "few": [n for n, key in enumerate(batch.keys) if key[-1] == "3"]}
        return {name: found for name, found in rows.items() if found}

    def amounts(self, batch: Batch) -> dict[str, float]:
        return {name: len(rows) for name, rows in self.rows(batch).items()}

    def forward(self, batch: Batch, shares: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        features, parts = self.backbone(batch.images.flatten(1)), {}
        for name, rows in self.rows(batch).items():
            parts[name] = shares[name] * (self.heads[name](features[rows]) - batch.targets[rows]).square().mean()
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}


def test_fit_sums_gradients_of_heads_with_labels_in_one_process_or_none(launcher: Launcher, tmp_path: Path) -> None:
    one, other = launcher.call(2, trained, tmp_path / "two", Heads, {})
    assert_same(one, other)
    assert_close(one, trained(tmp_path / "one", Heads, {}))
    before = weights(Heads())
    assert np.array_equal(one["heads.none.weight"], before["heads.none.weight"]), "not even decayed"
    assert not np.array_equal(one["heads.few.weight"], before["heads.few.weight"])
    assert [list(line["losses"]) for line in log(tmp_path / "two")] == [["all", "few"]] * STEPS


class PartialNorm(ConvNet):
    """Has a batch norm that only the last process runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(48)

    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.keys[-1].endswith("3"):
            self.norm(batch.images.flatten(1))
        return super().mean(batch)


def test_fit_averages_running_statistics_over_processes(launcher: Launcher, tmp_path: Path) -> None:
    one, other = launcher.call(2, trained, tmp_path / "two", PartialNorm, {"steps": 1})
    assert_same(one, other)
    second = make_batch(0).images[2:].flatten(1).mean(dim=0)
    np.testing.assert_allclose(one["norm.running_mean"], second / 2 * 0.1, rtol=1e-5)  # BatchNorm's momentum


class RandomLoss(Linears):
    """Its loss is a random number."""

    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.head.bias.sum() * 0 + torch.rand(())
        return loss, {f"of {ranks.rank()}": loss.detach()}


def test_fit_draws_other_random_numbers_in_each_process_and_step(launcher: Launcher, tmp_path: Path) -> None:
    launcher.call(2, trained, tmp_path / "a", RandomLoss, {"seed": 5})
    launcher.call(2, trained, tmp_path / "b", RandomLoss, {"seed": 6})
    drawn = [value for folder in "ab" for line in log(tmp_path / folder) for value in line["losses"].values()]
    assert len(set(drawn)) == len(drawn) == 2 * 2 * STEPS


def count_reports(out: Path) -> int:
    """Return how often this process reported. All but the first get folders of their own, to show what they write."""
    reports: list[float] = []
    runtime = Runtime(root.Root.of(out), "cpu", "32", 1, progress=lambda name, done, line: reports.append(done))
    train(out if ranks.is_first() else out / str(ranks.rank()), Linears(), runtime, checkpoint_s=0)
    return len(reports)


def test_fit_writes_and_reports_in_the_first_process_alone(launcher: Launcher, tmp_path: Path) -> None:
    assert launcher.call(3, count_reports, tmp_path) == [STEPS, 0, 0]
    assert sorted(files(tmp_path)) == sorted([LOG, STATE])


# Resuming


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_fit_resumes_with_another_number_of_processes(
    launcher: Launcher, tmp_path: Path, before: int, after: int
) -> None:
    fields = {"batch": 5, "ema": 0.5}
    whole = trained(tmp_path / "whole", Linears, fields)
    for found in launcher.call(before, stop_early, tmp_path / "parts", Linears, fields, 0):
        assert found == 3
    assert_close(launcher.call(after, trained, tmp_path / "parts", Linears, fields)[0], whole)
    assert_close_losses(tmp_path / "parts", tmp_path / "whole")
    assert [line["lr"] for line in log(tmp_path / "parts")] == [line["lr"] for line in log(tmp_path / "whole")]


def stop_early(out: Path, objective: type[Objective], fields: dict[str, Any], asked: int) -> int:
    """Ask the process `asked` to stop in its third pass, and return the step of the state that the fit saves."""

    class Stopping(objective):  # type: ignore[valid-type,misc]
        """Sets the stop."""

        def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            calls.append(1)
            if len(calls) == 3 and ranks.rank() == asked:
                runtime.stop.set()
            return super().mean(batch)

    calls: list[int] = []
    runtime = dataclasses.replace(QUIET, stop=type(QUIET.stop)())
    with pytest.raises(Stopped, match=r"Stopped in teacher\.t"):
        train(out, Stopping(), runtime, **fields)
    assert runtime.stop.is_set()
    step: int = load_state(out / STATE)["step"]
    return step


def test_fit_stopped_in_one_process_stops_in_all_and_resumes(launcher: Launcher, tmp_path: Path) -> None:
    fields = {"batch": 5, "accumulate": 5, "ema": 0.5}
    whole = launcher.call(2, trained, tmp_path / "whole", ConvNet, fields)
    assert launcher.call(2, stop_early, tmp_path / "parts", ConvNet, fields, 1) == [2, 2]  # of two passes each
    for found, expected in zip(launcher.call(2, trained, tmp_path / "parts", OtherWeights, fields), whole, strict=True):
        assert_same(found, expected)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def train_until_signalled(out: Path) -> None:
    """Train for so many steps that only a signal ends it."""
    train(out, ConvNet(), stopped_by_signal(Runtime(root.Root.of(out), "cpu", "32", 1)), steps=1_000_000)


def test_fit_on_sigterm_saves_one_whole_state(launcher: Launcher, tmp_path: Path) -> None:
    processes = launcher.start(2, train_until_signalled, tmp_path)
    wait_until(lambda: (tmp_path / LOG).exists() and (tmp_path / LOG).read_bytes().count(b"\n") >= 5, processes[0])
    for process in reversed(processes):
        process.terminate()
        time.sleep(0.02)  # as a launcher may take; the other one may have ended by then
    assert [type(found) for found in launcher.results()] == [Stopped, Stopped]
    assert load_state(tmp_path / STATE)["step"] == len(log(tmp_path)) >= 5
    assert sorted(files(tmp_path)) == sorted([LOG, STATE])


# Errors in one process


def unreadable(number: int) -> Batch:
    """Make a batch; the second process can't read number 3."""
    if number == 3 and ranks.rank() == 1:
        raise DataError("s0.tar: cut short")
    return make_batch(number)


def train_on(out: Path, objective: type[Objective], make: Any, fields: dict[str, Any]) -> None:
    train(out, objective(), stream=NumberedStream(make, fields.get("batch", 4)), checkpoint_s=0, **fields)


def train_on_full_disk(out: Path) -> None:
    """Train; the first process, which alone saves the state, finds the disk full."""

    def save(*_: Any) -> None:
        raise DataError("the disk is full")

    setattr(state.TrainingFiles, "save", save)  # noqa: B010 - for this process alone
    train(out, Linears(), checkpoint_s=0)


def test_fit_raises_lost_peer_when_another_process_ends(launcher: Launcher, tmp_path: Path) -> None:
    one, other = launcher.call(2, train_on_full_disk, tmp_path)
    assert (type(one), str(one)) == (DataError, "the disk is full")
    assert isinstance(other, LostPeer)


@pytest.mark.parametrize(
    "case",
    [
        (Linears, infinite_image, {}, r"the loss is (inf|nan) at step 4\. Images of the batch: 3\.2, 3\.3\. A"),
        (
            Linears,
            infinite_image,
            {"batch": 8, "accumulate": 4},
            r"the loss is (inf|nan) at step 2\. Images of the batch: 3\.3\. A",
        ),
        (
            RootMeanSquare,
            non_finite_gradient,
            {},
            r"the gradient is (inf|nan) at step 4\. Images of the batch: 3\.0, 3\.1, 3\.2, 3\.3\. A",
        ),
        (Linears, unreadable, {}, r"^s0\.tar: cut short$"),
    ],
    ids=["loss", "accumulated", "gradient", "images"],
)
def test_fit_raises_the_error_of_one_process_in_all(launcher: Launcher, tmp_path: Path, case: Any) -> None:
    *what, says = case
    one, other = launcher.call(2, train_on, tmp_path, *what)
    with pytest.raises(DataError, match=says):
        raise one
    assert (type(other), str(other)) == (DataError, str(one))
    assert all(tensor.isfinite().all() for tensor in load_state(tmp_path / STATE)["model"].values())


def test_fit_raises_for_a_damaged_state_in_all_processes(launcher: Launcher, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, Linears(), stopping(after=3))
    (tmp_path / STATE).write_bytes(b"{}")
    one, other = launcher.call(2, train_on, tmp_path, Linears, make_batch, {})
    assert isinstance(one, DataError)
    assert "Delete it to start teacher.t over" in str(one)
    assert str(other) == str(one)


def test_fit_refuses_a_batch_smaller_than_the_number_of_processes(launcher: Launcher, tmp_path: Path) -> None:
    for error in launcher.call(3, train_on, tmp_path, Linears, make_batch, {"batch": 2}):
        assert isinstance(error, ConfigError)
        assert "a batch of 2 images is too small for 3 processes" in str(error)


# Out of memory


class Small(Linears):
    """In the second process, does not fit two images into memory at once from the third step on."""

    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if ranks.rank() == 1 and len(batch.keys) > 1 and batch.keys[0] >= "2":
            raise torch.OutOfMemoryError("no more")
        return super().mean(batch)


class Tight(Linears):
    """Fits one image into memory at once."""

    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if len(batch.keys) > 1:
            raise torch.OutOfMemoryError("no more")
        return super().mean(batch)


def test_fit_splits_local_batches_of_two_sizes_down_to_single_images(launcher: Launcher, tmp_path: Path) -> None:
    one, other = launcher.call(2, trained, tmp_path / "two", Tight, {"batch": 5})
    assert_same(one, other)
    assert_close(one, trained(tmp_path / "one", Linears, {"batch": 5}))


def test_fit_out_of_memory_in_one_process_splits_alike_in_all(launcher: Launcher, tmp_path: Path) -> None:
    one, other = launcher.call(2, trained, tmp_path / "two", Small, {})
    assert_same(one, other)
    assert_close(one, trained(tmp_path / "one", Linears, {}))
    assert [line["passes"] for line in log(tmp_path / "two")] == [1, 1, 2, 2, 2, 2]
