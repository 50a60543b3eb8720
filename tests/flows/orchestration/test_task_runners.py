"""Labelling on every engine: the same labels, whoever makes them, and nothing lost with a worker."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import must
from flows.plan.selection import Selection
from flows.run.runners import check_runner
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.runtime import RuntimeConfig
from tests.flows.tiny import digests, events, prefect_says, within

Start = Callable[..., BaseProcess]
ENGINES = ["process", *(pytest.param(engine, marks=pytest.mark.slow) for engine in ("ray", "dask"))]


def labels(root: Path) -> dict[str, bytes]:
    """Every label shard of a root."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.glob("labels/*/*.parquet")}


def on(engine: str, *more: str) -> list[str]:
    return [f"runtime.runner={engine}", "runtime.label_workers=2", *more]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_makes_the_same_labels(engine: str, recipe: Path, up_to_label: Path, whole: Path) -> None:
    import prefect  # noqa: F401, PLC0415 - in another environment than the run's, as a notebook may

    outcome = must.run(recipe, up_to_label, on(engine), Selection("label"))
    assert labels(up_to_label) == labels(whole)
    assert digests(up_to_label)["label"] == digests(whole)["label"]
    assert outcome.artifacts["label"].counts == must.plan(recipe, whole)[5].artifact.counts  # type: ignore[union-attr]
    states = prefect_says(up_to_label, "select name, state_name from task_run where name like 'label %'")
    assert len(states) == 12
    assert {state for _, state in states} == {"Completed"}


def test_a_worker_that_is_killed_takes_nothing_with_it(
    recipe: Path, up_to_label: Path, whole: Path, start: Start
) -> None:
    root = up_to_label
    process = start(root, "--to", "label", *(part for each in on("process") for part in ("-o", each)))
    within(lambda: len(labels(root)) >= 2, process)
    os.kill(workers(process.pid or 0)[0], signal.SIGKILL)
    process.join()
    assert process.exitcode == 0
    assert labels(root) == labels(whole)
    assert digests(root)["label"] == digests(whole)["label"]
    assert [event["step"] for event in events(root) if event["event"] == "killed"] == ["label"]


@pytest.mark.slow
def test_a_stopped_run_leaves_no_worker(recipe: Path, up_to_label: Path, start: Start) -> None:
    root = up_to_label
    process = start(root, "--to", "label", *(part for each in on("process") for part in ("-o", each)))
    within(lambda: len(labels(root)) >= 1, process)
    at_work = workers(process.pid or 0)
    assert at_work
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join()
    assert process.exitcode == 75
    assert not [worker for worker in at_work if Path(f"/proc/{worker}").exists()]
    assert must.run(recipe, root, steps=Selection("label")).ran == 1


@pytest.mark.slow
def test_a_killed_run_leaves_no_worker(recipe: Path, up_to_label: Path, start: Start) -> None:
    root = up_to_label
    process = start(root, "--to", "label", *(part for each in on("process") for part in ("-o", each)))
    within(lambda: len(labels(root)) >= 1, process)
    at_work = workers(process.pid or 0)
    process.kill()
    process.join()
    deadline = time.monotonic() + 60
    while [worker for worker in at_work if Path(f"/proc/{worker}").exists()]:
        assert time.monotonic() < deadline, "a worker outlived its run"
        time.sleep(0.1)


def workers(run: int) -> list[int]:
    """The processes of a run that do parts."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text("utf-8").rpartition(")")[2].split()[1])
            if parent == run and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_an_error_in_a_part_is_the_runs(recipe: Path, up_to_label: Path) -> None:
    index = next(up_to_label.glob("artifacts/data.pool/*/images/train/shard-000003.parquet"))
    index.write_bytes(bytes(index.stat().st_size))
    with pytest.raises(DataError, match=r"shard-000003\.parquet: not a readable image index"):
        must.run(recipe, up_to_label, on("process"), Selection("label", only="label"))


def test_an_engine_that_is_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"runner is 'ray', which needs the extra ray: uv pip install -e '.*\[ray\]'\. Without"
    ):
        check_runner(RuntimeConfig(runner="ray"))


def test_an_address_is_for_those_who_have_one() -> None:
    with pytest.raises(ConfigError, match=r"address is 'ray://head:10001', but runner 'process' works on this machine"):
        check_runner(RuntimeConfig(runner="process", address="ray://head:10001"))
