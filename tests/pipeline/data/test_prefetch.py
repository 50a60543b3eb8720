"""Prefetching: results in order, a bounded number in flight, and nothing left running when the consumer leaves."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from pipeline.data.prefetch import STEPS_AHEAD, PrefetchedStream, prefetch


def prefetching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_yields_in_order_whichever_result_is_ready_first() -> None:
    last = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            last.wait()
        if item == 3:
            last.set()
        return item * item

    assert list(prefetch(work, range(9), 2, 8)) == [item * item for item in range(9)]


def test_prefetch_begins_no_more_than_may_wait() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    for done in prefetch(lambda item: item, items(), 3, 4):
        assert len(taken) <= done + 4


def test_prefetch_raises_an_error_in_the_place_of_its_result() -> None:
    results = prefetch(lambda item: 1 // item, [2, 1, 0, 1], 2, 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_prefetch_closed_early_leaves_no_work_behind() -> None:
    begun: list[int] = []
    results = prefetch(begun.append, range(100), 1, 10)
    next(results)
    results.close()
    before = len(begun)
    assert before <= 10
    assert not prefetching_threads()


class Ticks(list[tuple[int, int]]):
    """The samples (step, number) of some steps, put together."""

    keys: list[str]

    def split(self, count: int) -> Sequence[list[tuple[int, int]]]:
        return [self]


def ticking(sizes: Callable[[int], int], begun: list[tuple[int, int]]) -> PrefetchedStream[tuple[int, int], Ticks]:
    """A stream whose step has `sizes(step)` samples, each of which takes a moment and is noted when it is begun."""

    def make(step: int, number: int) -> tuple[int, int]:
        begun.append((step, number))
        time.sleep(0.001)
        return step, number

    def sample_makers(step: int) -> list[Callable[[], tuple[int, int]]]:
        return [functools.partial(make, step, number) for number in range(sizes(step))]

    return PrefetchedStream(sample_makers, lambda samples, step: Ticks(samples), threads=3)


@pytest.mark.parametrize("start", [0, 5])
def test_prefetched_stream_gives_each_step_its_own_samples_in_order(start: int) -> None:
    sizes = {step: 4 if step < 7 else 6 for step in range(30)}
    steps = ticking(sizes.__getitem__, []).batches(start)
    for step in range(start, 12):
        assert next(steps) == [(step, number) for number in range(sizes[step])]


def test_prefetched_stream_is_a_bounded_number_of_steps_ahead_and_stops_when_closed() -> None:
    begun: list[tuple[int, int]] = []
    stream = ticking(lambda step: 4, begun)
    steps = stream.batches(0)
    for step in range(5):
        next(steps)
        assert max(begun)[0] <= step + STEPS_AHEAD
    steps.close()
    assert not prefetching_threads()
