"""Prefetching on threads: an ordered, bounded map, and the endless stream of training batches that is built on it."""

from __future__ import annotations

import collections
import contextlib
import itertools
import operator
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from pipeline.data.stream import LocalBatch

STEPS_AHEAD = 2
"""Steps whose samples are made while the training is busy with the one before them."""
Item = TypeVar("Item")
Result = TypeVar("Result")
Sample = TypeVar("Sample")
LocalBatchT = TypeVar("LocalBatchT", bound=LocalBatch)


def prefetch(work: Callable[[Item], Result], items: Iterable[Item], threads: int, most: int) -> Generator[Result]:
    """Yield `work(item)` for each item, in order, computed on `threads` threads ahead of the consumer.

    At most `most` results are in the making or wait to be taken, so memory does not grow with the number of items.
    An exception raised by `work` is raised in the place of its result. Closing the generator early waits for the calls
    that are running and cancels the others:

        with contextlib.closing(prefetch(decode, files, threads=4, most=16)) as images:
            for image in images: ...
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    try:
        yield from map_ahead(pool, work, items, most)
    finally:
        pool.shutdown(cancel_futures=True)


def map_ahead(pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], most: int) -> Generator[Result]:
    """Yield what `prefetch` yields, computed by a pool that the caller shares and shuts down."""
    pending: collections.deque[Future[Result]] = collections.deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= most:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


class PrefetchedStream(Generic[Sample, LocalBatchT]):
    """An endless stream of training batches, from any step on, whose samples are made ahead on threads.

    `sample_makers(step)` returns the functions that make the samples of a step, one each; `assemble(samples, step)`
    puts the samples together.
    """

    def __init__(
        self,
        sample_makers: Callable[[int], Sequence[Callable[[], Sample]]],
        assemble: Callable[[Sequence[Sample], int], LocalBatchT],
        threads: int,
    ) -> None:
        self._makers_of_step, self._assemble, self._threads = sample_makers, assemble, threads

    def batches(self, start: int) -> Generator[LocalBatchT]:
        """Yield the local batch of step `start` and of every step after it."""
        steps, submitted = itertools.tee(map(self._makers_of_step, itertools.count(start)))
        most = STEPS_AHEAD * len(self._makers_of_step(start)) + 1  # one of the step at hand, which is taken one by one
        makers = itertools.chain.from_iterable(submitted)
        with contextlib.closing(prefetch(operator.call, makers, self._threads, most)) as made:
            for step, own in enumerate(steps, start):
                samples = list(itertools.islice(made, len(own)))
                yield self._assemble(samples, step)
