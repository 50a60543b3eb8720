"""Devices: which one is found, moving data to it, and one compute thread per worker."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.training.device import allocation_failures, find_device, move_to_device, single_threaded


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this a machine with the devices that are named, beside its processor."""

    def have(*devices: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in devices)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in devices)

    return have


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two compute threads, whatever this process was started with."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("devices", "best"), [([], "cpu"), (["mps"], "mps"), (["cuda"], "cuda"), (["mps", "cuda"], "cuda")]
)
def test_find_device_auto_is_the_fastest_kind_available(
    available: Callable[..., None], devices: list[str], best: str
) -> None:
    available(*devices)
    assert find_device("auto") == best


def test_find_device_returns_the_one_named(available: Callable[..., None]) -> None:
    available("cuda", "mps")
    assert [find_device(name) for name in ("cpu", "cuda", "mps")] == ["cpu", "cuda", "mps"]


def test_find_device_names_the_usable_ones_for_a_missing_one(available: Callable[..., None]) -> None:
    available("mps")
    with pytest.raises(ConfigError, match=r"runtime\.device is 'cuda', .* usable here: cpu, mps\."):
        find_device("cuda")
    available()
    with pytest.raises(ConfigError, match=r"runtime\.device is 'mps', .* usable here: cpu\."):
        find_device("mps")


class Point(NamedTuple):
    """A named tuple with a tensor in it."""

    x: Tensor
    name: str


@dataclasses.dataclass
class Scene:
    """A dataclass with tensors at several depths."""

    keys: list[str]
    image: Tensor
    targets: dict[str, list[dict[str, Tensor]]]
    point: Point


def test_move_to_device_moves_tensors_however_deep_and_leaves_all_else() -> None:
    scene = Scene(["a"], torch.ones(2), {"boxes": [{"xy": torch.zeros(3)}]}, Point(torch.ones(1), "p"))
    moved = move_to_device({"scene": scene, "pair": (scene.image, 1), "none": None}, "meta")
    found = moved["scene"]
    tensors = [found.image, found.targets["boxes"][0]["xy"], found.point.x, moved["pair"][0]]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert (found.keys, found.point.name, moved["pair"][1], moved["none"]) == (["a"], "p", 1, None)
    assert (type(found), type(found.point), type(moved["pair"])) == (Scene, Point, tuple)
    assert scene.image.device.type == "cpu", "what was given stays where it is"


def test_single_threaded_is_one_thread_inside_and_as_many_as_before_after(two_threads: None) -> None:
    inside: list[int] = []
    with single_threaded():
        inside.append(torch.get_num_threads())
        thread = threading.Thread(target=lambda: inside.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert inside == [1, 1]
    assert torch.get_num_threads() == 2


def test_single_threaded_restores_threads_after_an_error(two_threads: None) -> None:
    with pytest.raises(ValueError, match="inside"), single_threaded():
        raise ValueError("inside")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "text",
    [
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_allocation_failures_are_told_as_out_of_memory(text: str) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="ALLOC"), allocation_failures():
        raise RuntimeError(text)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        ValueError("CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_allocation_failures_leave_other_errors_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, allocation_failures():
        raise error
    assert raised.value is error
