"""Work done ahead of those who ask for it: on threads, in order, and only so much of it at a time."""

from __future__ import annotations

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
