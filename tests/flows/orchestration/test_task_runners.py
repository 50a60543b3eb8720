"""Task runners and fan-out: the same labels on every runner, and nothing lost with a worker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from distributed import Client

import must
from flows.orchestration.task_runners import local_dask_cluster, task_runner, worker_environs
from flows.plan.selection import Selection
from flows.run.devices import VISIBLE_GPUS
from pipeline.errors import DataError
from pipeline.recipe.runtime import RuntimeConfig
from tests.flows.tiny import digests, events, query_prefect
from tests.run_fixtures import add_database
from tests.waiting import wait_until, wait_until_gone

Start = Callable[..., BaseProcess]


def labels(root: Path) -> dict[str, bytes]:
    """Return the bytes of every label shard of a root."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.glob("labels/*/*.parquet")}


def on(runner: str, *more: str) -> list[str]:
    return [f"runtime.runner={runner}", "runtime.label_workers=2", *more]


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["process", "ray", "dask"])
def test_task_runners_make_the_same_labels(runner: str, recipe: Path, up_to_label: Path, finished_root: Path) -> None:
    import prefect  # noqa: F401, PLC0415 - in another environment than the run's, as a notebook may

    outcome = must.run(recipe, up_to_label, on(runner), Selection("label"))
    assert labels(up_to_label) == labels(finished_root)
    assert digests(up_to_label)["label"] == digests(finished_root)["label"]
    counts = dict(outcome.artifacts["label"].counts)
    assert counts.pop("worker_seconds") > 0
    assert counts == must.plan(recipe, finished_root)[5].artifact.counts  # type: ignore[union-attr]
    states = query_prefect(up_to_label, "select name, state_name from task_run where name like 'label %'")
    assert len(states) == 12
    assert {state for _, state in states} == {"Completed"}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fan_out_survives_a_killed_worker(
    workers: int, up_to_label: Path, prefect_database: Path, finished_root: Path, start: Start
) -> None:
    root, overrides = up_to_label, on("process", f"runtime.label_workers={workers}")
    add_database(root, prefect_database)
    process = start(root, "--to", "label", *(part for each in overrides for part in ("-o", each)))
    wait_until(lambda: len(labels(root)) >= 2, process)
    os.kill(worker_pids(process.pid or 0)[0], signal.SIGKILL)
    process.join()
    assert process.exitcode == 0
    assert labels(root) == labels(finished_root)
    assert digests(root)["label"] == digests(finished_root)["label"]
    assert [event["step"] for event in events(root) if event["event"] == "killed"] == ["label"]


@pytest.mark.parametrize(
    ("gpus", "workers", "given"),
    [
        ([], 3, [None, None, None]),
        (["0", "1"], 0, ["0", "1"]),
        (["GPU-a", "GPU-b"], 3, ["GPU-a", "GPU-b", "GPU-a"]),
    ],
)
def test_worker_environs_give_each_process_a_gpu(gpus: list[str], workers: int, given: list[str | None]) -> None:
    environs = worker_environs(RuntimeConfig(label_workers=workers), gpus)
    assert [environ.get(VISIBLE_GPUS) for environ in environs] == given


def visible_gpus(folder: Path, count: int) -> str | None:
    """Return the GPUs that this process sees, once as many processes have looked."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.05)
    return os.environ.get(VISIBLE_GPUS)


def test_task_runner_gives_each_process_a_gpu(tmp_path: Path) -> None:
    settings = RuntimeConfig(runner="process")
    with task_runner(settings, ["GPU-a", "GPU-b"]) as runner:
        executor = runner._executor  # type: ignore[attr-defined]
        seen = [executor.submit(visible_gpus, tmp_path, 2) for _ in range(2)]
        assert {each.result() for each in seen} == {"GPU-a", "GPU-b"}


@pytest.mark.parametrize("environs", [[{VISIBLE_GPUS: "GPU-a"}, {VISIBLE_GPUS: "GPU-b"}], [{}]])
def test_local_dask_cluster_gives_each_worker_a_gpu(environs: list[dict[str, str]]) -> None:
    with local_dask_cluster(environs) as cluster, Client(cluster) as client:  # type: ignore[no-untyped-call]
        seen = client.run(os.getenv, VISIBLE_GPUS)
        threads = client.nthreads()
    assert sorted(map(str, seen.values())) == [str(each.get(VISIBLE_GPUS)) for each in environs]
    assert list(threads.values()) == [1] * len(environs)


KILLED_WHILE_WRITING = """
from flows.orchestration.task_runners import task_runner
from pipeline.recipe.runtime import RuntimeConfig

with task_runner(RuntimeConfig(runner="process", label_workers=1), []) as runner:
    runner._subprocess_message_queue._wlock.acquire()
print("left")
"""


def test_task_runner_lets_the_run_end_if_a_worker_was_killed_while_writing() -> None:
    """A worker that is killed while it writes to Prefect's queue of messages leaves the queue locked."""
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr


@pytest.mark.slow
def test_fan_out_stopped_leaves_no_worker(recipe: Path, up_to_label: Path, start: Start) -> None:
    root = up_to_label
    process = start(root, "--to", "label", *(part for each in on("process") for part in ("-o", each)))
    wait_until(lambda: len(labels(root)) >= 1, process)
    running = worker_pids(process.pid or 0)
    assert running
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join()
    assert process.exitcode == 75
    assert not [worker for worker in running if Path(f"/proc/{worker}").exists()]
    assert must.run(recipe, root, steps=Selection("label")).ran == 1


@pytest.mark.slow
def test_fan_out_killed_leaves_no_worker(recipe: Path, up_to_label: Path, start: Start) -> None:
    root = up_to_label
    process = start(root, "--to", "label", *(part for each in on("process") for part in ("-o", each)))
    wait_until(lambda: len(labels(root)) >= 1, process)
    running = worker_pids(process.pid or 0)
    process.kill()
    process.join()
    wait_until_gone(*running)


def worker_pids(run: int) -> list[int]:
    """Return the pids of the worker processes of a run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text("utf-8").rpartition(")")[2].split()[1])
            if parent == run and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_fan_out_raises_the_error_of_a_part(recipe: Path, up_to_label: Path) -> None:
    index = next(up_to_label.glob("artifacts/data.pool/*/images/train/shard-000003.parquet"))
    index.write_bytes(bytes(index.stat().st_size))
    with pytest.raises(DataError, match=r"shard-000003\.parquet: its bytes changed since it was made"):
        must.run(recipe, up_to_label, on("process"), Selection("label", only="label"))
