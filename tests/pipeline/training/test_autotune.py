"""Autotuning: the fastest way to run a model is found, kept, and leaves no trace."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn

from pipeline.recipe.runtime import Precision
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.training.autotune import ComputeConfig, autotune, half_format, timed_images
from pipeline.training.device import single_threaded
from pipeline.training.process_group import ProcessGroup

Way = tuple[str, bool]
"""(precision, channels_last)."""
SLOW_S = 0.006
WAYS: dict[str, Way] = {
    "32": ("32", False),
    "32 channels_last": ("32", True),
    "bf16": ("bf16", False),
    "bf16 channels_last": ("bf16", True),
}


class TimedWork:
    """Work that is fast in one way only, and notes in which way each call was made."""

    def __init__(self, fast: str = "32") -> None:
        self.fast = WAYS[fast]
        self.done: list[Way] = []

    def __call__(self, model: nn.Module, compute: ComputeConfig) -> None:
        way = (compute.precision, compute.channels_last)
        self.done.append(way)
        if way != self.fast:
            time.sleep(SLOW_S)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only sleeping moves, so that other work on the machine changes no measurement."""
    passed = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: sum(passed))
    monkeypatch.setattr(time, "sleep", passed.append)


@pytest.fixture
def auto(tmp_path: Path) -> Runtime:
    """A runtime that leaves the number format open."""
    return Runtime(Root.of(tmp_path / "root"), "cpu", "auto", 1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two compute threads, whatever this process was started with."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def kept_files(runtime: Runtime) -> list[Path]:
    return sorted(Path(runtime.root / "machine").iterdir())


@pytest.mark.parametrize("fast", WAYS)
def test_autotune_chooses_the_fastest_way(auto: Runtime, fast: str) -> None:
    choice = autotune(auto, "model", nn.Linear(2, 2), TimedWork(fast))
    assert (choice.device, choice.precision, choice.channels_last) == ("cpu", *WAYS[fast])
    assert choice.measured_ms.keys() == WAYS.keys()
    slow = {way: pytest.approx(SLOW_S * 1000) for way in WAYS if way != fast}
    assert choice.measured_ms == {**slow, fast: 0}


def test_autotune_ignores_the_first_call_and_one_straggler(auto: Runtime) -> None:
    work = TimedWork("bf16")

    def call(model: nn.Module, compute: ComputeConfig) -> None:
        work(model, compute)
        if work.done.count(WAYS["bf16"]) in (1, 3) and work.done[-1] == WAYS["bf16"]:
            time.sleep(4 * SLOW_S)

    assert autotune(auto, "model", nn.Linear(2, 2), call).precision == "bf16"


@pytest.mark.parametrize(("held", "chosen"), [(["bf16"], "bf16"), (["32", "bf16"], "32")])
def test_autotune_does_not_choose_what_runs_out_of_memory(auto: Runtime, held: list[str], chosen: str) -> None:
    work = TimedWork()

    def call(model: nn.Module, compute: ComputeConfig) -> None:
        work(model, compute)
        torch.rand(1)
        if work.done[-1] not in [WAYS[way] for way in held]:
            raise torch.OutOfMemoryError("no more")

    model, before = nn.Linear(2, 2), torch.get_rng_state()
    choice = autotune(auto, "model", model, call)
    assert (choice.precision, choice.channels_last) == WAYS[chosen]
    assert set(choice.measured_ms) == set(held)
    assert autotune(auto, "model", model, call) == choice
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("precision", "half", "chosen"), [("auto", "bf16", "bf16"), ("auto", "fp16", "fp16"), ("32", "fp16", "32")]
)
def test_autotune_takes_16_bits_of_the_device_if_memory_suffices_for_nothing(
    auto: Runtime, monkeypatch: pytest.MonkeyPatch, precision: Precision, half: str, chosen: str
) -> None:
    """float16 on GPUs without bfloat16 alone, torch's own layout, and nothing is kept: memory may suffice soon."""
    monkeypatch.setattr("pipeline.training.autotune.half_format", lambda device: half)

    def call(model: nn.Module, compute: ComputeConfig) -> None:
        raise torch.OutOfMemoryError("no more")

    runtime = dataclasses.replace(auto, precision=precision)
    assert autotune(runtime, "model", nn.Linear(2, 2), call) == ComputeConfig("cpu", chosen, False, {})  # type: ignore[arg-type]
    assert not (Path(auto.root.path) / "machine").exists()


def test_autotune_measures_nothing_if_it_is_to_be_deterministic(auto: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    work, runtime = TimedWork(), dataclasses.replace(auto, deterministic=True)
    try:
        assert autotune(runtime, "model", nn.Linear(2, 2), work) == ComputeConfig("cpu", "32", False, {})
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert not work.done
    assert not (Path(auto.root.path) / "machine").exists()
    assert autotune(dataclasses.replace(runtime, precision="bf16"), "m", nn.Linear(2, 2), work).precision == "bf16"
    torch.use_deterministic_algorithms(False)


def test_autotune_sets_arithmetic_once_in_each_process_and_measures_in_the_first(
    auto: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    told = list[bool]()
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: told.append(mode))
    runtime, found = dataclasses.replace(auto, deterministic=True), ComputeConfig("cpu", "bf16", True, {})
    for is_first in (True, False):
        group = SimpleNamespace(broadcast_result=lambda make, is_first=is_first: make() if is_first else found)
        choice = autotune(runtime, "model", nn.Linear(2, 2), TimedWork(), cast(ProcessGroup, group))
        assert choice == (ComputeConfig("cpu", "32", False, {}) if is_first else found)
    assert told == [True, True]


def test_autotune_measures_once_per_root_and_keeps_its_choice(auto: Runtime, tmp_path: Path) -> None:
    work = TimedWork()
    first = autotune(auto, ["model", {"width": 16}], nn.Linear(2, 2), work)
    assert len(kept_files(auto)) == 1
    assert json.loads(kept_files(auto)[0].read_text()) == first.describe()
    other = TimedWork("bf16 channels_last")  # it would be chosen now
    again = autotune(Runtime(auto.root, "cpu", "auto", 2), ["model", {"width": 16}], nn.Linear(2, 2), other)
    assert again == first
    assert other.done == []
    elsewhere = dataclasses.replace(auto, root=Root.of(tmp_path / "elsewhere"))
    assert autotune(elsewhere, ["model", {"width": 16}], nn.Linear(2, 2), other) != first
    assert other.done != []


def test_autotune_chooses_for_each_key(auto: Runtime) -> None:
    for key, fast in (("train", "32"), ("predict", "bf16"), (["train", 2], "32 channels_last")):
        choice = autotune(auto, key, nn.Linear(2, 2), TimedWork(fast))
        assert (choice.precision, choice.channels_last) == WAYS[fast]
    assert len(kept_files(auto)) == 3


def test_autotune_keeps_its_choice_with_other_threads_so_that_trainings_resume(
    auto: Runtime, two_threads: None
) -> None:
    autotune(auto, "model", nn.Linear(2, 2), TimedWork("32"))
    with single_threaded():
        assert autotune(auto, "model", nn.Linear(2, 2), TimedWork("bf16")).precision == "32"
    assert len(kept_files(auto)) == 1


def test_autotune_chooses_for_each_processor(auto: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    autotune(auto, "model", nn.Linear(2, 2), TimedWork("32"))
    monkeypatch.setattr("pipeline.training.autotune.processor_name", lambda: "Another")
    assert autotune(auto, "model", nn.Linear(2, 2), TimedWork("bf16")).precision == "bf16"


@pytest.mark.parametrize(("precision", "fast"), [("32", "bf16"), ("bf16", "32")])
def test_autotune_keeps_to_a_given_precision(tmp_path: Path, precision: str, fast: str) -> None:
    runtime = Runtime(Root.of(tmp_path), "cpu", "32" if precision == "32" else "bf16", 1)
    work = TimedWork(fast)
    assert autotune(runtime, "model", nn.Linear(2, 2), work).precision == precision
    assert {used for used, _ in work.done} == {precision}


def test_autotune_with_a_given_precision_ignores_an_earlier_choice(auto: Runtime) -> None:
    assert autotune(auto, "model", nn.Linear(2, 2), TimedWork("32")).precision == "32"
    given = dataclasses.replace(auto, precision="bf16")
    assert autotune(given, "model", nn.Linear(2, 2), TimedWork("32")).precision == "bf16"


def test_autotune_leaves_no_trace(auto: Runtime) -> None:
    model = nn.Conv2d(3, 4, 3)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    laid_out = []

    def call(trial: nn.Module, compute: ComputeConfig) -> None:
        weight = trial.get_parameter("weight")
        laid_out.append(weight.is_contiguous(memory_format=compute.memory_format))
        nn.init.normal_(weight)  # random numbers, and other weights
        trial(torch.rand(1, 3, 4, 4)).sum().backward()

    torch.manual_seed(3)
    before = torch.get_rng_state()
    autotune(auto, "model", model, call)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model.weight.is_contiguous()
    assert model.weight.grad is None
    assert laid_out
    assert all(laid_out)


def test_compute_config_places_and_autocasts() -> None:
    plain, other = ComputeConfig("cpu", "32", False, {}), ComputeConfig("cpu", "bf16", True, {})
    model, images = nn.Conv2d(3, 4, 3), torch.rand(1, 3, 4, 4)
    for compute, dtype in ((plain, torch.float32), (other, torch.bfloat16)):
        placed = compute.place(model)
        with compute.autocast():
            assert placed(images).dtype == dtype
        assert placed.weight.is_contiguous(memory_format=compute.memory_format)
        assert placed.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [("cuda", (7, 5), "fp16"), ("cuda", (8, 0), "bf16"), ("cuda", (9, 0), "bf16"), ("cpu", (7, 5), "bf16")],
)
def test_half_format_is_float16_on_old_gpus(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert half_format(device) == expected


def test_timed_images_are_those_of_a_pass_on_a_gpu() -> None:
    assert (timed_images("cuda", 4, 256), timed_images("cpu", 4, 256)) == (256, 4)
