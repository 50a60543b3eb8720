"""The training loop: its steps, its average, what it refuses, and resuming as if never stopped."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, DataError, Stopped
from pipeline.models.checkpoint import load_state, read_tensors, save_state
from pipeline.steps.runtime import Runtime
from pipeline.storage import root
from pipeline.training.autotune import ComputeConfig
from pipeline.training.fit import FitResult
from pipeline.training.objective import Objective
from pipeline.training.state import TrainingFiles
from tests.pipeline.training.tiny_jobs import (
    LOG,
    QUIET,
    STATE,
    STEPS,
    Batch,
    ConvNet,
    Linears,
    LocalPart,
    NumberedStream,
    RootMeanSquare,
    assert_same,
    calling_back,
    log,
    make_batch,
    non_finite_gradient,
    stopping,
    train,
    train_with_result,
    vector,
)


def gradient(out: Path, **fields: Any) -> Tensor:
    """Return what one step of plain SGD subtracts from the weights, divided by the learning rate."""
    objective = Linears()
    before = vector(objective)
    train(out, objective, steps=1, optimizer="sgd", momentum=0, weight_decay=0, lr=0.5, **fields)
    return (before - vector(objective)) / 0.5


# One step


def test_fit_takes_each_step_at_its_own_learning_rate(tmp_path: Path) -> None:
    class Slope(Linears):
        """Its biases' gradient is always 1."""

        def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            return self.head.bias.sum(), {}

    slope, places = Slope(), [Slope().head.bias[0].item()]
    runtime = calling_back(lambda step, runtime: places.append(slope.head.bias[0].item()))
    train(tmp_path, slope, runtime, optimizer="sgd", momentum=0, lr=0.1, warmup=0.5, clip=None)
    np.testing.assert_allclose(-np.diff(places), [0.025, 0.05, 0.075, 0.1, 0.075, 0.025], rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_fit_leaves_a_backbone_at_rate_zero_as_it_was(tmp_path: Path, optimizer: str) -> None:
    objective, before = Linears(), Linears()
    train(tmp_path, objective, optimizer=optimizer, backbone_lr=0)
    assert_same(objective.backbone, before.backbone)
    assert not torch.equal(objective.head.weight, before.head.weight)


@pytest.mark.parametrize("clip", [None, 0.01])
def test_fit_accumulates_two_microbatches_to_a_step_on_the_batch(tmp_path: Path, clip: float | None) -> None:
    pieces = gradient(tmp_path / "pieces", batch=8, accumulate=2, clip=clip)
    whole = gradient(tmp_path / "whole", batch=8, clip=clip)
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-6)
    assert log(tmp_path / "pieces")[0]["losses"] == pytest.approx(log(tmp_path / "whole")[0]["losses"])
    assert log(tmp_path / "pieces")[0]["loss"] == pytest.approx(log(tmp_path / "whole")[0]["loss"])


def test_fit_clips_a_long_gradient_and_leaves_a_short_one(tmp_path: Path) -> None:
    objective = Linears()
    objective.mean(make_batch(0))[0].backward()
    true = torch.cat([one.grad.flatten() for one in objective.parameters() if one.grad is not None])
    norm = float(true.norm())
    free = gradient(tmp_path / "free", clip=None)
    torch.testing.assert_close(free, true, rtol=1e-4, atol=1e-6)
    short = gradient(tmp_path / "short", clip=norm / 4)
    assert float(short.norm()) == pytest.approx(norm / 4, rel=1e-3)
    torch.testing.assert_close(short, free / 4, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradient(tmp_path / "same", clip=norm * 4), free, rtol=1e-6, atol=1e-7)


def test_fit_splits_each_batch_in_turn_into_microbatches(tmp_path: Path) -> None:
    class Counted(Linears):
        """Remembers the keys of its microbatches."""

        def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            seen.append(batch.keys)
            return super().mean(batch)

    seen: list[list[str]] = []
    stream = NumberedStream(batch=6)
    with pytest.raises(Stopped):
        train(tmp_path, Counted(), stopping(after=2), stream=stream, batch=6, accumulate=3)
    assert stream.given == [0, 1]
    assert seen == [["0.0", "0.1"], ["0.2", "0.3"], ["1.0", "1.1"], ["1.2", "1.3"], ["2.0", "2.1"], ["2.2", "2.3"]]
    train(tmp_path, Linears(), stream=stream, batch=6, accumulate=3)
    assert stream.given == list(range(STEPS))
    assert {line["passes"] for line in log(tmp_path)} == {3}


def test_fit_logs_and_reports_every_step(tmp_path: Path) -> None:
    reported: list[tuple[str, float]] = []
    runtime = Runtime(root.Root.of(tmp_path), progress=lambda name, done, line: reported.append((name, done)))
    with torch.no_grad():
        first = float(Linears().mean(make_batch(0))[0])
    train(tmp_path, Linears(), runtime)
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["loss"] == pytest.approx(first)
    assert lines[0]["losses"] == {"error": pytest.approx(first), "half": pytest.approx(first / 2)}
    assert {name for name, _ in reported} == {"teacher.t"}
    assert [done for _, done in reported] == pytest.approx([step / STEPS for step in range(1, STEPS + 1)])


# The average


def average(weights: list[np.ndarray[Any, Any]], most: float) -> np.ndarray[Any, Any]:
    """Return the moving average of the weights after each step in float64, as ModelEmaV3 documents it: the weights
    themselves for two steps; then its decay grows as 1 - (1 + k)^(-2/3), up to `most`.
    """
    mean = weights[1]
    for k, weight in enumerate(weights[2:], start=1):
        decay = min(1 - (1 + k) ** (-2 / 3), most)
        mean = decay * mean + (1 - decay) * weight
    return mean


@pytest.mark.parametrize("decay", [0.5, 0.6, 0.999])
def test_fit_returns_the_moving_average(tmp_path: Path, decay: float) -> None:
    objective = Linears()
    raw: list[np.ndarray[Any, Any]] = []
    runtime = calling_back(lambda step, runtime: raw.append(vector(objective).double().numpy()))
    trained = train(tmp_path, objective, runtime, ema=decay)
    assert trained is objective
    found = vector(trained).numpy()
    np.testing.assert_allclose(found, average(raw, decay), rtol=1e-5, atol=1e-7)
    assert np.abs(found - raw[-1]).max() > 1e-3


def test_fit_averages_without_changing_the_training(tmp_path: Path) -> None:
    trained = [train(tmp_path / "without", ConvNet().eval()), train(tmp_path / "with", ConvNet(), ema=0.9)]
    assert log(tmp_path / "without") == log(tmp_path / "with")
    assert not any(module.training for one in trained for module in one.modules())


# Non-finite values


def non_finite_loss(number: int) -> Batch:
    """Make a batch; number 3 has no finite loss."""
    batch = make_batch(number)
    return dataclasses.replace(batch, images=batch.images * (torch.inf if number == 3 else 1))


THIRD = r"3\.0, 3\.1, 3\.2, 3\.3\."
NON_FINITE = pytest.mark.parametrize(
    ("what", "objective", "make"),
    [("loss", ConvNet, non_finite_loss), ("gradient", RootMeanSquare, non_finite_gradient)],
)


@NON_FINITE
@pytest.mark.parametrize("fields", [{}, {"clip": None}, {"ema": 0.5}], ids=str)
def test_fit_ends_at_a_non_finite_value_before_it_reaches_the_state(
    tmp_path: Path, what: str, objective: type[Objective], make: Callable[[int], Batch], fields: dict[str, Any]
) -> None:
    named = rf"^teacher\.t: the {what} is (inf|nan) at step 4\. Images of the batch: {THIRD} A smaller lr"
    with pytest.raises(DataError, match=named):
        train(tmp_path / "ill", objective(), stream=NumberedStream(make), checkpoint_s=0, **fields)
    assert load_state(tmp_path / "ill" / STATE)["step"] == 3
    assert all(bool(tensor.isfinite().all()) for tensor in read_tensors(tmp_path / "ill" / STATE)[1].values())
    assert [line["step"] for line in log(tmp_path / "ill")] == [1, 2, 3]
    healed = train(tmp_path / "ill", objective(), **fields)
    assert_same(healed, train(tmp_path / "well", objective(), **fields))


@NON_FINITE
def test_fit_names_the_microbatch_of_a_non_finite_loss_and_the_batch_of_a_gradient(
    tmp_path: Path, what: str, objective: type[Objective], make: Callable[[int], Batch]
) -> None:
    keys = THIRD if what == "loss" else r"2\.0, 2\.1, 2\.2, 2\.3, " + THIRD
    with pytest.raises(DataError, match=rf"the {what} is (inf|nan) at step 2\. Images of the batch: {keys}"):
        train(tmp_path, objective(), stream=NumberedStream(make, batch=8), batch=8, accumulate=2)


# Resuming


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_fit_resumes_as_if_never_stopped(
    tmp_path: Path, optimizer: str, ema: float | None, accumulate: int, channels_last: bool
) -> None:
    compute = ComputeConfig("cpu", "32", channels_last, {})
    fields: dict[str, Any] = {"optimizer": optimizer, "ema": ema, "accumulate": accumulate, "compute": compute}
    whole = train(tmp_path / "whole", ConvNet(), **fields)
    for seed, after in enumerate((1, 2, 4, STEPS)):  # other weights and random numbers each time it is begun again
        with pytest.raises(Stopped, match=r"Stopped in teacher\.t"):
            train(tmp_path / "parts", ConvNet(seed), stopping(after), **fields)
        assert load_state(tmp_path / "parts" / STATE)["step"] == after
    parts = train(tmp_path / "parts", ConvNet(99), **fields)
    assert_same(parts, whole)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_fit_saves_its_state_when_a_stop_comes_late_in_a_step(tmp_path: Path) -> None:
    class Late(threading.Event):
        """Set just after it is first checked."""

        def is_set(self) -> bool:
            before = super().is_set()
            self.set()
            return before

    with pytest.raises(Stopped):
        train(tmp_path, Linears(), dataclasses.replace(QUIET, stop=Late()))
    assert load_state(tmp_path / STATE)["step"] == len(log(tmp_path))


def test_fit_goes_on_when_storage_does_not_take_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("s3://bucket: the storage does not answer")

    lines: list[str] = []
    runtime = Runtime(root.Root.of(tmp_path), progress=lambda name, done, line: lines.append(line))
    monkeypatch.setattr(root.Root, "upload", refuse)
    train(tmp_path, Linears(), runtime, checkpoint_s=0)
    assert "its state is on this machine alone: s3://bucket: the storage does not answer" in lines
    assert load_state(tmp_path / STATE)["step"] == STEPS


def test_fit_resumes_after_a_crash_from_the_last_state(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", ConvNet())
    with pytest.raises(Stopped):
        train(tmp_path / "parts", ConvNet(), stopping(after=2))
    five = [make_batch(number) for number in range(5)]
    with pytest.raises(IndexError):
        train(tmp_path / "parts", ConvNet(), stream=NumberedStream(five.__getitem__))
    assert len(log(tmp_path / "parts")) == 5
    assert_same(train(tmp_path / "parts", ConvNet(), stream=(stream := NumberedStream())), whole)
    assert stream.given == [2, 3, 4, 5]
    assert log(tmp_path / "parts") == log(tmp_path / "whole")  # steps 3 to 5 are in it once


class Clock:
    """A clock that moves only when the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def attempt(self, out: Path, until: int = STEPS + 1) -> FitResult:
        """Train at ten seconds a step, stopped after the step `until`."""

        def watch(step: int, runtime: Runtime) -> None:
            self.now += 10
            if step == until:
                runtime.stop.set()

        return train_with_result(out, Linears(), calling_back(watch))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=time.perf_counter)
    monkeypatch.setattr("pipeline.training.fit.time", fake)
    return clock


@pytest.mark.parametrize("stops", [(1,), (2, 3), (STEPS,)])
def test_fit_result_has_the_seconds_of_all_attempts(tmp_path: Path, clock: Clock, stops: tuple[int, ...]) -> None:
    whole = clock.attempt(tmp_path / "whole")
    assert (whole.seconds, whole.earlier) == (60, 0)
    assert whole.counts() == {"training_seconds": 60, "steps": STEPS}
    for until in stops:
        with pytest.raises(Stopped):
            clock.attempt(tmp_path / "parts", until)
        clock.now += 5000  # nobody trains meanwhile
    parts = clock.attempt(tmp_path / "parts")
    assert (parts.seconds, parts.earlier) == (60, 10 * stops[-1])
    assert parts.counts() == {"training_seconds": 60, "steps": STEPS, "earlier_seconds": 10 * stops[-1]}


def test_fit_resumes_from_a_state_without_seconds(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(Stopped):
        clock.attempt(tmp_path, 2)
    state = load_state(tmp_path / STATE)
    del state["seconds"]
    save_state(tmp_path / STATE, state)
    fitted = clock.attempt(tmp_path)
    assert (fitted.seconds, fitted.earlier) == (40, 0)


class StuckStream(NumberedStream):
    """Fails when it is closed."""

    def batches(self, start: int) -> Generator[LocalPart]:
        try:
            yield from super().batches(start)
        finally:
            raise OSError("stuck")


@pytest.mark.parametrize("case", ["stream", "state"])
def test_fit_closes_its_files_whatever_else_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    closed = list[str]()
    monkeypatch.setattr(TrainingFiles, "close", lambda files: closed.append(files.name))
    if case == "state":
        (tmp_path / STATE).parent.mkdir()
        (tmp_path / STATE).write_bytes(b"{}")
    with pytest.raises((OSError, DataError), match=r"stuck|Delete it to start"):
        train(tmp_path, Linears(), stream=StuckStream())
    assert closed == ["teacher.t"]


@pytest.mark.parametrize("end", ["{", '"loss"', '"losses": {', '"half": ', "}", '"waited_s"', "}\n"])
def test_fit_cuts_a_torn_last_line_off_the_log(tmp_path: Path, end: str) -> None:
    train(tmp_path / "whole", Linears())
    line = (tmp_path / "whole" / LOG).read_text().splitlines(keepends=True)[3]
    with pytest.raises(Stopped):
        train(tmp_path / "parts", Linears(), stopping(after=3))
    with open(tmp_path / "parts" / LOG, "a") as file:
        file.write(line[: line.index(end) + len(end)])
    train(tmp_path / "parts", Linears())
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


@pytest.mark.parametrize("part", [slice(0), slice(100), slice(-1), slice(2, None)], ids=str)
def test_fit_names_a_damaged_state_and_starts_over_without_it(tmp_path: Path, part: slice) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, Linears(), stopping(after=3))
    path = tmp_path / STATE
    path.write_bytes(path.read_bytes()[part])
    with pytest.raises(DataError, match=r"work/state\.safetensors: .* Delete it to start teacher\.t over\."):
        train(tmp_path, Linears())
    path.unlink()
    train(tmp_path, Linears())
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5, 6]


class Pooled(ConvNet):
    """Leaves one value per image and channel to its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize("sizes", [{"batch": 1}, {"batch": 4, "accumulate": 4}])
def test_fit_refuses_passes_that_leave_batch_norm_one_value(tmp_path: Path, sizes: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=rf"batch norm needs several values .* \(batch: {sizes['batch']}, .*Set a larger batch"
    ):
        train(tmp_path, Pooled(), **sizes)
    train(tmp_path, Pooled(), batch=2)
