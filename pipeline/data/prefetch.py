"""Samples made ready on threads before the training asks for them."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from pipeline.data.stream import Share

AHEAD = 3
"""Steps made ready before they are asked for."""
S = TypeVar("S")
H = TypeVar("H", bound=Share)


class Supply(Generic[S, H]):
    """An endless stream of shares, from any step on. `tasks(step)` are what makes the samples of a step, one each, and
    `share(samples, step)` puts them together.
    """

    def __init__(
        self,
        tasks: Callable[[int], Sequence[Callable[[], S]]],
        share: Callable[[Sequence[S], int], H],
        threads: int,
    ) -> None:
        self.tasks, self.share, self.threads = tasks, share, threads
        self.waited = 0.0
        """Seconds the consumer has waited for samples so far."""

    def stream(self, start: int) -> Iterator[H]:
        """Shares from step `start` on."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="load") as pool:
            ready: collections.deque[list[Future[S]]] = collections.deque()
            step = start
            try:
                while True:
                    while len(ready) < AHEAD:
                        ready.append([pool.submit(task) for task in self.tasks(step + len(ready))])
                    began = time.perf_counter()
                    samples = [future.result() for future in ready.popleft()]
                    self.waited += time.perf_counter() - began
                    yield self.share(samples, step)
                    step += 1
            finally:
                for futures in ready:
                    for future in futures:
                        future.cancel()


Item = TypeVar("Item")


Result = TypeVar("Result")


def ahead(work: Callable[[Item], Result], items: Iterable[Item], threads: int, most: int) -> Generator[Result]:
    """What `work` makes of each item, in order, at most `most` of them in work or waiting to be taken.

    What `work` raises is raised where its result would have come. Whoever leaves early waits for what is in work alone.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
