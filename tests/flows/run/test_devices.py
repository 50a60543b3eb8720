"""Devices: how many GPUs each step gets, and which ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from flows.run.devices import VISIBLE_GPUS, DevicePool, Devices
from flows.run.step_runner import find_devices
from pipeline.errors import ConfigError
from pipeline.recipe.runtime import RuntimeConfig
from pipeline.steps.artifact import Artifact, Step
from pipeline.storage.root import Root
from tests.steps import make_step

EIGHT = [str(number) for number in range(8)]


def devices(gpus: list[str], **settings: Any) -> Devices:
    return Devices(gpus, RuntimeConfig.model_validate(settings))


def training(name: str, batch: int = 32, **kind: Any) -> Step:
    """Return a step that several processes can share, with a batch of so many images."""
    return make_step(name, "work", {"student": {"batch": batch}}, trains="student.batch", **kind)


def stage(batch: int = 32) -> Step:
    """Return one whose data can leave it with fewer images: half of the batch, or all that there are."""
    return training("stage.x", batch, fewest_images=half_or_all)


def half_or_all(config: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> int:
    return min(config["student"]["batch"] // 2, artifacts["pool.x"].counts["images"])


POOL = {"pool.x": Artifact(Root.of("r"), "pool.x/0", {"counts": {"images": 5}})}


def alone(name: str) -> Step:
    """Return a step that one process does."""
    return make_step(name, "work", {})


@pytest.mark.parametrize(
    ("visible", "device", "gpus"),
    [(None, "cuda", ["0", "1", "2"]), ("GPU-a, GPU-b,", "cuda", ["GPU-a", "GPU-b"]), ("2,1", "cpu", [])],
)
def test_find_devices_lists_the_gpus_that_a_run_may_use(
    visible: str | None, device: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv(VISIBLE_GPUS, visible) if visible else monkeypatch.delenv(VISIBLE_GPUS, raising=False)
    assert find_devices(RuntimeConfig(), device).gpus == gpus


def test_find_devices_refuses_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE_GPUS, "2,1")
    with pytest.raises(ConfigError, match=r"training_processes is 3: at most 2, .* or auto for all of them"):
        find_devices(RuntimeConfig(training_processes=3), "cuda")
    assert find_devices(RuntimeConfig(training_processes=3), "cpu").training_processes == 3


@pytest.mark.parametrize(
    ("gpus", "wanted", "batch", "processes"),
    [(EIGHT, "auto", 32, 8), (EIGHT, "auto", 6, 6), (EIGHT, 2, 32, 2), (["0"], "auto", 32, 1), ([], "auto", 32, 1)],
)
def test_devices_processes_are_all_gpus_for_a_training_if_auto_and_no_more_than_images(
    gpus: list[str], wanted: int | str, batch: int, processes: int
) -> None:
    assert devices(gpus, training_processes=wanted).processes(training("student", batch), {}) == processes


def test_devices_processes_are_one_for_what_one_process_does() -> None:
    assert devices(EIGHT, training_processes="auto").processes(alone("probe.student.pets"), {}) == 1


@pytest.mark.parametrize(("wanted", "batch", "processes"), [("auto", 32, 5), ("auto", 6, 3), (2, 6, 2), (4, 6, 3)])
def test_devices_processes_are_no_more_than_the_images_of_the_smallest_step(
    wanted: int | str, batch: int, processes: int
) -> None:
    found = devices(EIGHT, training_processes=wanted)
    assert found.processes(stage(batch), POOL) == processes
    pool = DevicePool(found)
    pool.lend(stage(batch), POOL)
    assert pool.environ("stage.x")[VISIBLE_GPUS] == ",".join(EIGHT[:processes])
    assert found.processes_at_once(stage(batch), POOL, [alone("probe.a.b")]) == processes + 1


@pytest.mark.parametrize(
    ("gpus", "wanted", "step", "words"),
    [
        (EIGHT, "auto", training("student"), "on 8 of 8 GPUs"),
        (EIGHT, "auto", training("student", 6), "on 6 of 8 GPUs, as its smallest step has 6 images"),
        (EIGHT, "auto", stage(), "on 5 of 8 GPUs, as its smallest step has 5 images"),
        (EIGHT, "auto", alone("probe.a.b"), "on 1 of 8 GPUs, as it can use one"),
        (["0"], "auto", alone("probe.a.b"), ""),
        ([], 2, training("student"), "in 2 processes"),
        ([], 2, training("student", 1), "in 1 process, as its smallest step has 1 image"),
        ([], 2, alone("probe.a.b"), ""),
        ([], "auto", training("student"), ""),
    ],
)
def test_devices_describe_says_how_many_gpus_a_step_gets_and_why(
    gpus: list[str], wanted: int | str, step: Step, words: str
) -> None:
    assert devices(gpus, training_processes=wanted).describe(step, POOL) == words


@pytest.mark.parametrize(
    ("gpus", "settings", "concurrency"),
    [(EIGHT, {}, 8), (EIGHT, {"training_processes": "auto"}, 8), (EIGHT, {"side_by_side": 3}, 3), ([], {}, 1)],
)
def test_devices_concurrency_is_a_step_for_each_gpu(
    gpus: list[str], settings: dict[str, Any], concurrency: int
) -> None:
    assert devices(gpus, **settings).concurrency == concurrency


def lent(pool: DevicePool, *steps: Step) -> list[str | None]:
    """Lend each step its GPUs, and return which ones; None for a step that has to wait."""
    return [pool.environ(step.name)[VISIBLE_GPUS] if pool.lend(step, POOL) else None for step in steps]


@pytest.mark.parametrize(
    ("gpus", "settings", "expected"),
    [
        ("0 1 2", {}, ["0", "1", "2", None]),
        ("2 1 0", {"training_processes": 2}, ["2,1", None, None, None]),
        ("2 1", {"side_by_side": 3}, ["2", "1", "2", "1"]),  # the number of steps at once is `concurrency`
        ("0 1", {"training_processes": 2, "side_by_side": 2}, ["0,1", "0,1", None, None]),
        ("0 1", {"training_processes": "auto"}, ["0,1", None, None, None]),
    ],
)
def test_device_pool_lends_each_training_gpus_of_its_own_if_there_are_enough(
    gpus: str, settings: dict[str, Any], expected: list[str | None]
) -> None:
    pool = DevicePool(devices(gpus.split(), **settings))
    assert lent(pool, *(training(f"teacher.{letter}") for letter in "abcd")) == expected


def test_device_pool_lends_probes_and_finetuning_a_gpu_each_whatever_trainings_take() -> None:
    pool = DevicePool(devices(["0", "1", "2"], training_processes=2))
    assert lent(pool, alone("probe.a.b"), training("student"), alone("finetune.a.b")) == ["0", "1,2", None]
    pool.give_back("student")
    assert lent(pool, alone("finetune.a.b"), alone("finetune.c.b")) == ["1", "2"]


def test_device_pool_lends_all_gpus_to_a_training_once_they_are_free() -> None:
    pool = DevicePool(devices(EIGHT, training_processes="auto"))
    assert lent(pool, alone("probe.a.b"), training("student")) == ["0", None]
    pool.give_back("probe.a.b")
    assert lent(pool, training("student")) == [",".join(EIGHT)]


def test_device_pool_without_gpus_refuses_nothing() -> None:
    pool = DevicePool(devices([]))
    assert pool.lend(alone("probe.a.b"), {})
    assert pool.environ("probe.a.b") == {}


@pytest.mark.parametrize(
    ("gpus", "settings", "step", "others", "processes"),
    [
        (EIGHT, {"training_processes": "auto"}, training("student"), 5, 8),  # it has all GPUs: none runs beside it
        (EIGHT, {}, training("student"), 0, 1),
        (EIGHT, {}, training("student"), 5, 6),
        (EIGHT, {}, training("student"), 20, 8),
        ([], {}, training("student"), 20, 1),
        ([], {"side_by_side": 2}, training("student"), 20, 2),
        ([], {"side_by_side": 2}, training("student"), 0, 1),
        ([], {"training_processes": 2}, training("student"), 20, 2),
    ],
)
def test_devices_processes_at_once_are_all_of_a_step_that_none_runs_beside(
    gpus: list[str], settings: dict[str, Any], step: Step, others: int, processes: int
) -> None:
    beside = [alone(f"probe.{number}.set") for number in range(others)]
    assert devices(gpus, **settings).processes_at_once(step, POOL, beside) == processes
