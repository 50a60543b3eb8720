"""Measure how the threads of a CPU should wait for each other: the reason for `flows/run/process_setup.py`.

    python -m benchmarks.cpu_threads

Trains a ResNet-18 on images of 128 pixels in bfloat16, with a thread for each core, quiet and beside a process that
keeps one core busy. Threads wait asleep, or spin for so many turns before they sleep (GOMP_SPINCOUNT), or do what
OpenMP does by default; or the batch is cut into a piece for each core, and threads compute the pieces side by side.
Each way has processes of its own, since OpenMP reads these variables once; they take turns.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Annotated

import typer

from benchmarks.measure import RESULTS, describe_environment, medians, save_result
from pipeline.errors import PROJECT
from pipeline.steps.runtime import usable_cores

BATCH, SIDE, SECONDS, WINDOWS = 16, 128, 5.0, 3
CORES = usable_cores()
ONE = "one thread"
WAYS: dict[str, dict[str, str]] = {
    ONE: {"OMP_NUM_THREADS": "1"},
    "asleep": {"OMP_WAIT_POLICY": "passive"},
    **{f"{turns:,} turns": {"GOMP_SPINCOUNT": str(turns)} for turns in (1_000, 10_000, 100_000)},
    "OpenMP's default": {},
    "a piece for each core": {"OMP_NUM_THREADS": "1", "PIECES": str(CORES)},
}
"""The environment of each way."""


def train(pieces: int) -> float:
    """Return the images per second of a training whose batch is cut into so many pieces, computed side by side."""
    import timm  # noqa: PLC0415 - in the measured process alone
    import torch  # noqa: PLC0415

    model = timm.create_model("resnet18").train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.rand(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)

    def run_pass(piece: torch.Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(piece)
        (output.float().logsumexp(dim=1).sum() / BATCH).backward()

    def step() -> None:
        threads = [threading.Thread(target=run_pass, args=[piece]) for piece in images.chunk(pieces)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    began = time.perf_counter()
    for steps in itertools.count(1):
        step()
        if (seconds := time.perf_counter() - began) > SECONDS:
            return steps * BATCH / seconds
    raise AssertionError


def rate(environ: Mapping[str, str]) -> float:
    """Return the images per second of a process with these variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "benchmarks.cpu_threads", "--measure"]
    done = subprocess.run(
        command, cwd=PROJECT, env={**inherited, **environ}, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(json.loads(done.stdout))


def keep_busy() -> None:
    """Compute without end."""
    while True:
        pass


@contextlib.contextmanager
def busy_core(busy: bool) -> Iterator[None]:
    """Keep one core busy inside, if asked to."""
    process = multiprocessing.Process(target=keep_busy, daemon=True)
    if busy:
        process.start()
    try:
        yield
    finally:
        if busy:
            process.kill()
            process.join()


def main(measure: Annotated[bool, typer.Option(help="Measure in this process, and print the rate.")] = False) -> None:
    """Measure, print, and write `cpu_threads` to the results."""
    if measure:
        print(json.dumps(train(int(os.environ.get("PIECES", "1")))))
        return
    environment = describe_environment("cpu")
    rates: dict[str, dict[str, list[float]]] = {state: {way: [] for way in WAYS} for state in ("quiet", "busy")}
    for _ in range(WINDOWS):
        for state, by_way in rates.items():
            with busy_core(state == "busy"):
                for way, environ in WAYS.items():
                    by_way[way].append(rate(environ))
    quiet, busy = (medians(rates[state]) for state in ("quiet", "busy"))
    table = [("threads wait", "images/s", "of one thread", "beside a busy core", "of quiet")]
    for way in WAYS:
        shares = (quiet[way] / quiet[ONE], busy[way] / quiet[way])
        table.append((way, f"{quiet[way]:.1f}", f"{shares[0]:.2f}", f"{busy[way]:.1f}", f"{shares[1]:.2f}"))
    title = f"A ResNet-18 trained by {CORES} threads, by how they wait for each other"
    save_result(RESULTS / "cpu_threads.json", title, {"measured": environment, "images_per_s": rates}, table)


if __name__ == "__main__":
    typer.run(main)
