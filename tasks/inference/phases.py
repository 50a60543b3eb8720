"""Run batches through a model in three phases, load, infer and finish, overlapped with bounded work in flight."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.data.prefetch import map_ahead, prefetch
from pipeline.steps.runtime import Runtime
from pipeline.training.device import find_device, single_threaded

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Inferred = TypeVar("Inferred")
Finished = TypeVar("Finished")


def overlap_phases(
    load: Callable[[Item], Loaded],
    infer: Callable[[Loaded], Inferred],
    finish: Callable[[Inferred], Finished],
    items: Iterable[Item],
    runtime: Runtime,
) -> Generator[Finished]:
    """Yield `finish(infer(load(item)))` for each item, in order.

    On a CPU each worker thread takes an item through all phases with one compute thread, so that no phase waits for
    another and none competes for a core. With a GPU the calling thread runs the model, while worker threads load ahead
    of it and finish behind it.
    """
    threads = runtime.threads
    if find_device(runtime.device) == "cpu":  # each worker has one item running and one waiting
        done = prefetch(lambda item: finish(infer(load(item))), items, threads, 2 * threads)
        with single_threaded(), contextlib.closing(done):
            yield from done
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="infer")
    try:
        loaded = map_ahead(pool, load, items, threads + 1)
        inferred = (infer(each) for each in loaded)  # in this thread
        yield from map_ahead(pool, finish, inferred, threads + 1)
    finally:
        pool.shutdown(cancel_futures=True)
