"""Work ahead: in order, bounded, and stopped by whoever leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.data.prefetch import ahead


def test_results_come_in_order_whoever_is_first() -> None:
    last = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert last.wait(60)
        if item == 3:
            last.set()
        return item * item

    assert list(ahead(work, range(9), 2, 8)) == [item * item for item in range(9)]


def test_no_more_is_begun_than_may_wait() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    for done in ahead(lambda item: item, items(), 3, 4):
        assert len(taken) <= done + 4


def test_an_error_comes_where_its_result_would_have() -> None:
    results = ahead(lambda item: 1 // item, [2, 1, 0, 1], 2, 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_who_leaves_early_leaves_no_work_behind() -> None:
    begun: list[int] = []
    results = ahead(begun.append, range(100), 1, 10)
    next(results)
    results.close()
    before = len(begun)
    assert before <= 10
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())
